//! A worker's ring: [`Io`] on the kernel's `io_uring`.
//!
//! Slot `s` has direct descriptor `2s` for its client and `2s + 1` for its server. An accept
//! installs into the first, a connect makes its socket in the second; no descriptor number ever
//! enters the process's own table.

mod beside;
mod connect;
mod features;
mod wake;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, LazyLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use io_uring::types::{CancelBuilder, DestinationSlot, Fd, Fixed};
use io_uring::{IoUring, cqueue, opcode, squeue};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{Shutdown, shutdown};

use crate::io::{
    Buffer, Completion, Errno, Io, Kind, Operation, Payload, ReceivedAt, Side, Time, Token,
};
use crate::limits::{
    CPU_SAMPLE_CONNECTIONS, RECEIVE_BUFFER_BYTES, RECEIVE_PIECE_BYTES, RECORD_PAYLOAD_BYTES_MAX,
};
use crate::telemetry::counters::Counters;

pub use features::Features;

use beside::Beside;

use super::address::SocketAddress;
use super::enter::RingFd;
use super::receive::{self, GROUP, ReceiveBuffers};
use super::slots::Slots;

/// Entries of the submission queue; when it is full it is submitted early.
pub const SUBMISSIONS: u32 = 4096;
/// Entries of the completion queue; what does not fit waits in the kernel.
pub const COMPLETIONS: u32 = 32 * 1024;

/// Boxes for addresses that are kept for what is to come.
const SPARE_ADDRESSES_KEPT: usize = 8;

const ETIME: Errno = Errno(62);
const EINTR: Errno = Errno(4);
const EBUSY: Errno = Errno(16);
const EAGAIN: Errno = Errno(11);
const EINVAL: Errno = Errno(22);

/// `TCP_QUICKACK`: now, but not from now on, which an odd number would mean.
static ACKNOWLEDGE_ONCE: libc::c_int = 2;
const OPTION_BYTES: u32 = 4;
const _: () = assert!(size_of::<libc::c_int>() == OPTION_BYTES as usize);
/// `AF_UNSPEC`, which is 0.
static UNSPECIFIED: libc::sockaddr = libc::sockaddr { sa_family: 0, sa_data: [0; 14] };

/// When every ring's clock has begun: what one worker notes, another may compare.
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What the kernel holds of one slot besides its descriptors.
#[derive(Default)]
struct SlotMemory {
    /// The buffers being sent, to the client and to the server.
    to_client: Option<Buffer>,
    to_server: Option<Buffer>,
    /// The address being accepted from or connected to.
    address: Option<Box<SocketAddress>>,
    /// The address being connected from.
    source: Option<Box<SocketAddress>>,
}

impl SlotMemory {
    fn is_empty(&self) -> bool {
        self.to_client.is_none() && self.to_server.is_none() && self.address.is_none()
    }

    fn sending(&mut self, side: Side) -> &mut Option<Buffer> {
        match side {
            Side::Client => &mut self.to_client,
            Side::Server => &mut self.to_server,
        }
    }
}

/// The ring of one worker. Made and used on that worker's thread (`SINGLE_ISSUER`).
pub struct Ring {
    // Declared first, dropped first: the kernel lets go before the memory below goes.
    uring: IoUring,
    enter: RingFd,
    listeners: Vec<OwnedFd>,
    receive: ReceiveBuffers,
    slots: Slots<SlotMemory>,
    /// Boxes for addresses, kept for the next accept or connect.
    #[expect(clippy::vec_box, reason = "the kernel holds pointers into the boxes in use")]
    spare_addresses: Vec<Box<SocketAddress>>,
    wake: Arc<EventFd>,
    /// What wakes each worker, by its number.
    wakes: Arc<[Arc<EventFd>]>,
    /// Where the mailbox's read puts the eventfd's counter.
    wake_count: Box<u64>,
    features: Features,
    /// This worker's CPU, where to count whose packets came to it, and connections until the next
    /// look.
    cpu: Option<(usize, Arc<Counters>, u32)>,
    /// Completions of operations that never went to the kernel.
    answered: Vec<Completion>,
    /// Does dear steps of handshakes; started when there is the first.
    beside: Option<Beside>,
    started: Instant,
}

impl Ring {
    /// A ring for `slots` slots.
    ///
    /// # Errors
    /// The step that failed and the kernel's reason.
    pub fn new(
        slots: u32,
        listeners: Vec<OwnedFd>,
        wake: Arc<EventFd>,
    ) -> Result<Self, (&'static str, std::io::Error)> {
        let mut ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)
            .map_err(|error| ("io_uring_setup", error))?;
        ring.submitter()
            .register_files_sparse(slots * 2)
            .map_err(|error| ("registering the table of direct descriptors", error))?;
        let receive = ReceiveBuffers::register(&ring)
            .map_err(|error| ("registering the receive buffers", error))?;
        let features = Features::of(&mut ring).map_err(|error| ("probing the ring", error))?;
        let enter = RingFd::register(ring.as_raw_fd());
        let mut this = Self {
            uring: ring,
            enter,
            listeners,
            receive,
            slots: Slots::reserve(slots),
            spare_addresses: Vec::new(),
            wake,
            wakes: Arc::new([]),
            wake_count: Box::new(0),
            features,
            cpu: None,
            answered: Vec::new(),
            beside: None,
            started: *STARTED,
        };
        this.read_mailbox();
        Ok(this)
    }

    /// Looks, for one connection of [`CPU_SAMPLE_CONNECTIONS`], whether its packets come to `cpu`,
    /// the worker's own.
    pub fn sample_cpus(&mut self, cpu: usize, counters: Arc<Counters>) {
        self.cpu = Some((cpu, counters, 0));
    }

    /// Asks for a descriptor of the client's socket if this connection is to be looked at.
    ///
    /// Nobody waits for it: the kernel installs while it takes the submission, so that a connection
    /// which ends meanwhile only makes it fail.
    fn sample(&mut self, token: Token) {
        let Some((.., wait)) = &mut self.cpu else { return };
        if let Some(left) = wait.checked_sub(1) {
            *wait = left;
        } else if self.features.descriptor_install {
            *wait = CPU_SAMPLE_CONNECTIONS - 1;
            self.install(Token { kind: Kind::SampleClient, ..token }, Side::Client);
        }
    }

    fn sampled(&self, client: &OwnedFd) {
        if let (Some((cpu, counters, _)), Some(incoming)) =
            (&self.cpu, super::socket::incoming_cpu(client))
        {
            counters.cpu_samples.add(1);
            counters.cpu_matches.add(u64::from(incoming == *cpu));
        }
    }

    /// Makes room for a chain of `entries`, submitting what is queued if there is none.
    fn make_room(&mut self, entries: usize) {
        loop {
            let queue = self.uring.submission();
            if queue.capacity() - queue.len() >= entries {
                return;
            }
            drop(queue);
            self.submit_queued(0, None);
            // The kernel takes no more while completions overflow: take them out of its way.
            let mut answered = std::mem::take(&mut self.answered);
            self.reap(&mut answered);
            // Reaping may have come here again, by way of the mailbox.
            answered.append(&mut self.answered);
            self.answered = answered;
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        self.make_room(1);
        // SAFETY: everything `entry` points to is owned by `self` (see the contract in
        // `sys/mod.rs`) and stays put until the operation's completion.
        let pushed = unsafe { self.uring.submission().push(entry) };
        debug_assert!(pushed.is_ok(), "room was made");
    }

    fn submit_queued(&mut self, wanted: u32, timeout: Option<std::time::Duration>) {
        let queued = u32::try_from(self.uring.submission().len()).unwrap_or(u32::MAX);
        match self.enter.enter(queued, wanted, timeout) {
            // EBUSY, EAGAIN: completions must be reaped, or memory freed, before more is taken.
            Ok(_) | Err(ETIME | EINTR | EBUSY | EAGAIN) => {}
            // Only a defect of ours is answered otherwise (EINVAL, EBADF, EFAULT); going on would
            // spin without I/O.
            Err(error) => unreachable!("io_uring_enter: {error}"),
        }
    }

    fn slot(&mut self, token: Token) -> &mut SlotMemory {
        self.slots.entry(token.slot)
    }

    fn send(&mut self, token: Token, side: Side, buffer: Buffer, ends: bool) {
        let unsent = buffer.unsent();
        let length = u32::try_from(unsent.len()).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(file(token, side), unsent.as_ptr(), length)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL | if ends { libc::MSG_MORE } else { 0 })
            .build()
            .user_data(token.pack());
        let lent = self.slot(token).sending(side);
        assert!(lent.is_none(), "two sends to one side in flight");
        *lent = Some(buffer);
        self.push(&entry);
    }

    fn recv(&mut self, token: Token, side: Side, streams: bool) {
        let file = file(token, side);
        let most = if streams { RECEIVE_BUFFER_BYTES } else { RECEIVE_PIECE_BYTES };
        let bytes = receive_bytes(side, most);
        let entry = if self.features.bounded_receive && !streams {
            receive::bounded(file, bytes)
        } else {
            opcode::Recv::new(file, std::ptr::null_mut(), bytes)
                .buf_group(GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT)
        };
        self.push(&entry.user_data(token.pack()));
    }

    /// Waits for bytes, an end or an error without taking them: a quarter of the kernel memory of a
    /// receive that waits.
    fn poll(&mut self, token: Token, side: Side) {
        let events = libc::POLLIN | libc::POLLRDHUP;
        let entry = opcode::PollAdd::new(file(token, side), events.cast_unsigned().into()).build();
        self.push(&entry.user_data(token.pack()));
    }

    fn accept(&mut self, token: Token, listener: u32) {
        let Some(listener) = self.listeners.get(listener as usize).map(AsRawFd::as_raw_fd) else {
            self.answer(token, Err(EINVAL));
            return;
        };
        let mut address = self.spare_addresses.pop().unwrap_or_default();
        let (storage, length) = address.for_kernel();
        let entry = opcode::Accept::new(Fd(listener), storage, length)
            .file_index(destination(token, Side::Client))
            .build()
            .user_data(token.pack());
        self.slot(token).address = Some(address);
        self.push(&entry);
    }

    /// Installs a descriptor for the moment of one system call, made when the completion comes.
    fn install(&mut self, token: Token, side: Side) {
        let entry = opcode::FixedFdInstall::new(file(token, side), 0).build();
        self.push(&entry.user_data(token.pack()));
    }

    fn local_address(&mut self, token: Token) {
        if self.features.descriptor_install {
            self.install(token, Side::Client);
        } else {
            self.answer(token, Err(EINVAL));
        }
    }

    /// Ends our direction. The ring's own shutdown always goes through a kernel thread (Linux 6.18
    /// and before), at several times the cost of the system calls on an installed descriptor.
    fn shutdown(&mut self, token: Token, side: Side) {
        if self.features.descriptor_install {
            self.install(token, side);
        } else {
            let entry = opcode::Shutdown::new(file(token, side), libc::SHUT_WR).build();
            self.push(&entry.user_data(token.pack()));
        }
    }

    fn acknowledge(&mut self, token: Token) {
        if !self.features.socket_options {
            self.answer(token, Ok(0));
            return;
        }
        let acknowledge = opcode::SetSockOpt::new(
            file(token, Side::Client),
            libc::IPPROTO_TCP.cast_unsigned(),
            libc::TCP_QUICKACK.cast_unsigned(),
            (&raw const ACKNOWLEDGE_ONCE).cast(),
            OPTION_BYTES,
        );
        self.push(&acknowledge.build().user_data(token.pack()));
    }

    /// Completes an operation without the kernel.
    fn answer(&mut self, token: Token, result: Result<u32, Errno>) {
        let payload = Payload::None;
        self.answered.push(Completion { token, result, more: false, payload });
    }

    fn read_mailbox(&mut self) {
        let token = Token::new(0, 0, Kind::Mailbox);
        let into = (&raw mut *self.wake_count).cast();
        let entry = opcode::Read::new(Fd(self.wake.as_raw_fd()), into, 8).build();
        self.push(&entry.user_data(token.pack()));
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        loop {
            let Some(entry) = self.uring.completion().next() else {
                return;
            };
            if let Some(completion) = self.complete(&entry) {
                completions.push(completion);
            }
        }
    }

    fn complete(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let Some(token) = Token::unpack(entry.user_data()) else {
            unreachable!("the kernel answers what was not asked")
        };
        let mut result = match u32::try_from(entry.result()) {
            Ok(value) => Ok(value),
            Err(_) => Err(Errno(entry.result().wrapping_neg())),
        };
        let payload = match token.kind {
            Kind::RecvClient | Kind::RecvServer => {
                if result == Err(Errno::NO_BUFFERS) && self.receive.hand_over_more() {
                    result = Err(Errno::TRY_AGAIN);
                }
                self.received(entry, result)
            }
            Kind::SendClient => self.sent(token, Side::Client),
            Kind::SendServer => self.sent(token, Side::Server),
            Kind::Accept => self.accepted(token, result),
            Kind::Connect => return Some(self.connected(token, result)),
            Kind::LocalAddress => {
                let socket = result.ok().and_then(installed);
                let address = socket.as_ref().and_then(super::socket::local_address);
                address.map_or(Payload::None, Payload::Peer)
            }
            Kind::ShutdownClient | Kind::ShutdownServer if self.features.descriptor_install => {
                if let Some(socket) = result.ok().and_then(installed) {
                    // ENOTCONN: the peer has reset the connection, which a receive tells too.
                    let _not_connected = shutdown(socket.as_raw_fd(), Shutdown::Write);
                }
                Payload::None
            }
            // A step before the connect has failed. The kernel then says nothing of the steps
            // behind it, because this one was to be silent (`IOSQE_CQE_SKIP_SUCCESS`).
            Kind::Internal if result.is_err() => {
                return Some(self.connected(Token { kind: Kind::Connect, ..token }, result));
            }
            Kind::Internal => return None,
            Kind::SampleClient => {
                // A connection that has ended since tells nothing.
                if let Some(client) = result.ok().and_then(installed) {
                    self.sampled(&client);
                }
                return None;
            }
            Kind::Mailbox => {
                self.read_mailbox();
                Payload::None
            }
            _ => Payload::None,
        };
        let more = cqueue::more(entry.flags());
        Some(Completion { token, result, more, payload })
    }

    fn received(&mut self, entry: &cqueue::Entry, result: Result<u32, Errno>) -> Payload {
        let Some(buffer) = cqueue::buffer_select(entry.flags()) else {
            return Payload::None;
        };
        self.receive.lend(buffer);
        match result {
            Ok(len) if len > 0 => Payload::Received(ReceivedAt { buffer, start: 0, len }),
            _ => {
                self.receive.recycle(buffer);
                Payload::None
            }
        }
    }

    fn sent(&mut self, token: Token, side: Side) -> Payload {
        let lent = self.slot(token).sending(side).take();
        let Some(buffer) = lent else { unreachable!("a send completed twice") };
        Payload::Sent(buffer)
    }

    fn accepted(&mut self, token: Token, result: Result<u32, Errno>) -> Payload {
        let Some(address) = self.slot(token).address.take() else {
            return Payload::None;
        };
        let client = address.get();
        self.spare_addresses.push(address);
        match (result, client) {
            (Ok(_), Some(client)) => Payload::Peer(client),
            _ => Payload::None,
        }
    }

    fn connected(&mut self, token: Token, result: Result<u32, Errno>) -> Completion {
        let slot = self.slot(token);
        let addresses = [slot.address.take(), slot.source.take()];
        self.spare_addresses.extend(addresses.into_iter().flatten());
        Completion { token, result, more: false, payload: Payload::None }
    }
}

impl Io for Ring {
    fn submit(&mut self, token: Token, operation: Operation) {
        match operation {
            Operation::Accept { listener } => self.accept(token, listener),
            Operation::LocalAddress => self.local_address(token),
            Operation::Acknowledge => self.acknowledge(token),
            Operation::Send { side, buffer, ends } => self.send(token, side, buffer, ends),
            Operation::Connect(connect) => self.connect(token, &connect),
            Operation::Recv { side, streams } => self.recv(token, side, streams),
            Operation::Poll { side } => self.poll(token, side),
            Operation::Shutdown { side } => self.shutdown(token, side),
            Operation::Reset { side } => {
                // Connecting to AF_UNSPEC dissolves an association (connect(2)); on TCP the
                // kernel answers the peer with a reset.
                #[expect(clippy::cast_possible_truncation, reason = "16 bytes")]
                let length = size_of::<libc::sockaddr>() as libc::socklen_t;
                let entry = opcode::Connect::new(file(token, side), &raw const UNSPECIFIED, length);
                self.push(&entry.build().user_data(token.pack()));
            }
            Operation::Close { side } => {
                let entry = opcode::Close::new(file(token, side)).build();
                self.push(&entry.user_data(token.pack()));
            }
            Operation::Wake { worker } => self.wake(token, worker),
            Operation::Compute(work) => self.compute(token, work),
            Operation::Cancel { target } => {
                let target = Token { kind: target, ..token }.pack();
                let entry = opcode::AsyncCancel::new(target).build();
                self.push(&entry.user_data(token.pack()));
            }
        }
    }

    fn wait(&mut self, deadline: Option<Time>, completions: &mut Vec<Completion>) {
        let timeout = deadline.map(|deadline| deadline.since(self.now()));
        let waits = self.answered.is_empty() && timeout.is_none_or(|timeout| !timeout.is_zero());
        self.submit_queued(u32::from(waits), timeout);
        completions.append(&mut self.answered);
        self.reap(completions);
        self.take_computed(completions);
    }

    fn received(&mut self, at: &ReceivedAt) -> &mut [u8] {
        self.receive.bytes(at)
    }

    fn recycle(&mut self, at: ReceivedAt) {
        self.receive.recycle(at.buffer);
    }

    fn forget(&mut self, slot: u32) {
        debug_assert!(
            self.slots.get(slot).is_none_or(SlotMemory::is_empty),
            "slot {slot} is freed while the kernel holds of it"
        );
        self.slots.clear(slot);
    }

    fn is_large(&self) -> bool {
        self.receive.is_large()
            || self.slots.is_large()
            || self.beside.is_some()
            || self.spare_addresses.capacity() > SPARE_ADDRESSES_KEPT
    }

    fn trim(&mut self) {
        // Nothing may wait that was received: not in the queue, not in the kernel for want of room
        // in the queue, and not where it was put to make room.
        let overflown = self.uring.submission().cq_overflow();
        if !overflown && self.uring.completion().is_empty() && self.answered.is_empty() {
            self.receive.trim();
        }
        self.spare_addresses.truncate(SPARE_ADDRESSES_KEPT);
        self.spare_addresses.shrink_to_fit();
        self.rest_beside();
        self.slots.trim();
        super::allocator::flush_thread_cache();
    }

    fn stop_listening(&mut self) {
        self.listeners.clear();
    }

    fn unix(&mut self) -> u32 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
    }

    fn now(&mut self) -> Time {
        Time::default() + self.started.elapsed()
    }
}

/// Bytes of one receive, of `most` at most. From a server: what fills whole records, so that a busy
/// stream is not cut into long and short ones.
#[expect(clippy::cast_possible_truncation, reason = "a few hundred KiB")]
fn receive_bytes(side: Side, most: usize) -> u32 {
    match side {
        Side::Client => most as u32,
        Side::Server => (most - most % RECORD_PAYLOAD_BYTES_MAX) as u32,
    }
}

fn file(token: Token, side: Side) -> Fixed {
    Fixed(token.slot * 2 + side as u32)
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Closing a ring cancels what is in flight some time later; the memory lent to it goes
        // now. ENOENT: nothing was in flight.
        let _nothing_in_flight =
            self.uring.submitter().register_sync_cancel(None, CancelBuilder::any());
    }
}

fn destination(token: Token, side: Side) -> Option<DestinationSlot> {
    DestinationSlot::try_from_slot_target(token.slot * 2 + side as u32).ok()
}

/// A descriptor that the kernel has installed for us; it is closed when dropped.
fn installed(descriptor: u32) -> Option<OwnedFd> {
    let descriptor = i32::try_from(descriptor).ok()?;
    // SAFETY: it was installed just now for the operation that has completed; nobody else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_whose_socket_cannot_be_made_completes() {
        let wake = Arc::new(EventFd::new().unwrap());
        let mut ring = Ring::new(1, Vec::new(), wake).unwrap();
        // A slot beyond the kernel's table: making the socket fails, as it does with ENFILE.
        let token = Token::new(5, 1, Kind::Connect);
        let address = crate::io::Address::Inet("127.0.0.1:9".parse().unwrap());
        let connect = crate::io::Connect { address, source: None, speaks: true };
        ring.submit(token, Operation::Connect(Box::new(connect)));
        let mut completions = Vec::new();
        let until = ring.now() + std::time::Duration::from_secs(1);
        ring.wait(Some(until), &mut completions);
        let [completion] = completions.as_slice() else { panic!("{completions:?}") };
        assert_eq!(completion.token, token);
        assert!(completion.result.is_err(), "{completion:?}");
    }
}
