//! Making a socket and connecting it, in one chain of operations.

use io_uring::types::Fixed;
use io_uring::{opcode, squeue};

use super::{EINVAL, OPTION_BYTES, Ring, destination, file};
use crate::io::{Address, Connect, Errno, Kind, Side, Token};
use crate::limits::NOT_SENT_BYTES;

const ENOSYS: Errno = Errno(38);

static YES: libc::c_int = 1;

/// `TCP_QUICKACK`: with what we send, or after the kernel's delay. Set before the connect, it holds
/// for the acknowledgement that completes it, too.
static ACKNOWLEDGE_LATER: libc::c_int = 0;

/// What a server's socket holds unsent, at most: as a client's, which has it from its listener.
#[expect(clippy::cast_possible_wrap, reason = "128 KiB")]
static NOT_SENT: libc::c_int = NOT_SENT_BYTES as libc::c_int;

impl Ring {
    /// `socket → TCP_NODELAY, TCP_NOTSENT_LOWAT, TCP_QUICKACK → bind → connect`, linked: one
    /// submission, one completion unless a step fails. What is not asked for is left out.
    pub(super) fn connect(&mut self, token: Token, connect: &Connect) {
        let Connect { address: to, source: from, speaks } = connect;
        if from.is_some() && !self.features.bind {
            self.answer(token, Err(ENOSYS));
            return;
        }
        // The client's handshake is over, so that its packets have come where they come.
        self.sample(token);
        let mut address = self.spare_addresses.pop().unwrap_or_default();
        if address.set(to).is_err() {
            self.spare_addresses.push(address);
            self.answer(token, Err(EINVAL));
            return;
        }
        let step = Token { kind: Kind::Internal, ..token }.pack();
        let quietly = |entry: squeue::Entry| {
            entry.flags(squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS).user_data(step)
        };
        let server = file(token, Side::Server);
        self.make_room(7);
        let socket = opcode::Socket::new(address.family(), libc::SOCK_STREAM, 0)
            .file_index(destination(token, Side::Server))
            .build();
        self.push(&quietly(socket));
        if self.features.socket_options && matches!(to, Address::Inet(_)) {
            self.push(&quietly(set(server, libc::IPPROTO_TCP, libc::TCP_NODELAY, &YES)));
            let bound = set(server, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, &NOT_SENT);
            self.push(&quietly(bound));
            if *speaks {
                let later = set(server, libc::IPPROTO_TCP, libc::TCP_QUICKACK, &ACKNOWLEDGE_LATER);
                self.push(&quietly(later));
            }
        }
        if let Some(from) = *from {
            let mut source = self.spare_addresses.pop().unwrap_or_default();
            source.set_inet(from);
            let (storage, length) = source.filled();
            // The port is chosen by the connect, which knows the whole quadruple (ip(7)).
            let late = set(server, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &YES);
            self.push(&quietly(late));
            let bind = opcode::Bind::new(server, storage, length).build();
            self.slot(token).source = Some(source);
            self.push(&quietly(bind));
        }
        let (storage, length) = address.filled();
        let connect = opcode::Connect::new(server, storage, length).build();
        self.slot(token).address = Some(address);
        self.push(&connect.user_data(token.pack()));
    }
}

/// Sets a socket option.
fn set(
    socket: Fixed,
    level: libc::c_int,
    option: libc::c_int,
    value: &'static libc::c_int,
) -> squeue::Entry {
    let (level, option) = (level.cast_unsigned(), option.cast_unsigned());
    opcode::SetSockOpt::new(socket, level, option, (&raw const *value).cast(), OPTION_BYTES).build()
}
