//! What kernel settings save, one at a time, each with and without: connections in the queue of a
//! listener that closes, bytes behind a reader that stalls, a burst before a busy listener, and
//! connections to one server. See `bench/README.md`.
//!
//! It runs itself again in a network namespace of its own (unshare(1)), so that it changes no
//! setting of the machine.
#![expect(clippy::print_stdout, reason = "the table is the program's product")]
#![expect(clippy::print_stderr, reason = "what goes wrong is told there")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use portcullis::sys::socket::{listen, steer};

/// The argument of the run inside.
const INSIDE: &str = "--inside";

/// How long a client waits for what comes at once or never.
const PATIENCE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    // cargo bench says --bench, and `cargo bench -- --test` wants each benchmark run once, quickly.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ended = if arguments.iter().any(|argument| argument == INSIDE) {
        measure(arguments.iter().any(|argument| argument == "--test"))
    } else {
        run_inside(&arguments)
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tuning: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_inside(arguments: &[String]) -> io::Result<ExitCode> {
    let me = std::env::current_exe()?;
    let status = Command::new("unshare").arg("-rn").arg(me).arg(INSIDE).args(arguments).status()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

fn measure(quick: bool) -> io::Result<ExitCode> {
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    if !up.success() {
        return Err(io::Error::other("the loopback cannot be set up"));
    }
    println!("| setting | value | what is counted | count |");
    println!("|---|---|---|---|");
    let queued = if quick { 20 } else { 200 };
    for value in ["0", "1"] {
        set("net.ipv4.tcp_migrate_req", value)?;
        for steered in [false, true] {
            // A thread of its own, as a steered one is pinned.
            let (lost, of) = thread::spawn(move || closing_listener(queued, steered))
                .join()
                .map_err(|_| io::Error::other("the clients' thread panicked"))??;
            let steered = if steered { ", SO_INCOMING_CPU" } else { "" };
            println!(
                "| tcp_migrate_req | {value} | connections lost, of those in the queue of a closed \
                 listener{steered} | {lost} of {of} |"
            );
        }
    }
    let readers = if quick { 2 } else { 20 };
    for value in ["4294967295", "131072", "16384"] {
        set("net.ipv4.tcp_notsent_lowat", value)?;
        let bytes = stalled_readers(readers)?;
        let what = "bytes that the kernel takes for a reader that does not read";
        println!("| tcp_notsent_lowat | {value} | {what} | {bytes} |");
    }
    for value in if quick { ["16", "64"] } else { ["128", "4096"] } {
        set("net.core.somaxconn", value)?;
        println!(
            "| somaxconn | {value} | clients of a burst that are let in while nobody accepts | {} \
             |",
            burst()?
        );
    }
    let seconds = Duration::from_secs(if quick { 1 } else { 5 });
    set("net.ipv4.ip_local_port_range", "20000 20999")?;
    for value in ["0", "1"] {
        set("net.ipv4.tcp_tw_reuse", value)?;
        let (made, refused) = one_server(seconds)?;
        let what =
            format!("short connections to one server in {} s, 1000 ports", seconds.as_secs());
        println!("| tcp_tw_reuse | {value} | {what} | {made}, then {refused} |");
        // What is in TIME-WAIT now must not be in the next one's way.
        set("net.ipv4.ip_local_port_range", "30000 30999")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn set(name: &str, value: &str) -> io::Result<()> {
    std::fs::write(format!("/proc/sys/{}", name.replace('.', "/")), value)
}

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Two listeners as two workers have them; one closes while both have queues. Clients that are
/// reset, and clients that were in its queue.
///
/// Steered, the closing one is that of our CPU and gets all of them, and the other is of another
/// CPU.
fn closing_listener(clients: usize, steered: bool) -> io::Result<(usize, usize)> {
    let closing = listen(any(), 4096)?;
    if steered {
        core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
        steer(&closing, 0)?;
    }
    let closing = TcpListener::from(closing);
    let address = closing.local_addr()?;
    let staying = listen(address, 4096)?;
    if steered {
        steer(&staying, 1)?;
    }
    let staying = TcpListener::from(staying);
    let mut open = Vec::new();
    for _ in 0..clients {
        open.push(TcpStream::connect(address)?);
    }
    // The last acknowledgement of each handshake has arrived when connect returns, or soon after.
    thread::sleep(Duration::from_millis(50));
    let at_closing = queued(address)?.into_iter().min_by_key(|(inode, _)| *inode);
    drop(closing);
    let mut served = Vec::new();
    while let Ok((mut client, _)) = staying.accept() {
        client.write_all(b"x")?;
        served.push(client);
    }
    let lost = open.iter_mut().map(gets_a_byte).filter(|served| !served).count();
    Ok((lost, at_closing.map_or(0, |(_, waiting)| waiting)))
}

/// Inode and waiting connections of each listener of an address.
fn queued(address: SocketAddr) -> io::Result<Vec<(u32, usize)>> {
    let all = portcullis::sys::sock_diag::listeners()?;
    let here = all.into_iter().filter(|listener| listener.address == address);
    Ok(here.map(|listener| (listener.inode, listener.waiting as usize)).collect())
}

fn gets_a_byte(client: &mut TcpStream) -> bool {
    let waits = client.set_read_timeout(Some(PATIENCE));
    waits.is_ok() && client.read_exact(&mut [0]).is_ok()
}

/// Writes to readers that do not read until the kernel takes no more: bytes of each, those that
/// wait at the reader included.
fn stalled_readers(readers: u64) -> io::Result<u64> {
    // A listener without options of its own: the setting is what counts.
    let listener = TcpListener::bind(any())?;
    let (mut bytes, mut kept) = (0, Vec::new());
    for _ in 0..readers {
        let reader = TcpStream::connect(listener.local_addr()?)?;
        let (mut writer, _) = listener.accept()?;
        writer.set_nonblocking(true)?;
        bytes += fill(&mut writer)?;
        kept.push((reader, writer));
    }
    Ok(bytes / readers)
}

/// Writes until nothing was taken for a while, as acknowledgements make room for some time.
fn fill(writer: &mut TcpStream) -> io::Result<u64> {
    let block = [0; 16 * 1024];
    let (mut bytes, mut last) = (0, Instant::now());
    while last.elapsed() < Duration::from_millis(100) {
        match writer.write(&block) {
            Ok(count) => {
                bytes += count as u64;
                last = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Clients that a listener's queue takes before the first is left waiting.
fn burst() -> io::Result<usize> {
    let listener = TcpListener::from(listen(any(), 65_535)?);
    let address = listener.local_addr()?;
    let mut open = Vec::new();
    while let Ok(client) = TcpStream::connect_timeout(&address, PATIENCE) {
        open.push(client);
    }
    Ok(open.len())
}

/// Connections to one server, each closed by us first; how many were made, and how many tries found
/// no port.
fn one_server(time: Duration) -> io::Result<(usize, usize)> {
    let listener = TcpListener::bind(any())?;
    let address = listener.local_addr()?;
    let accepting = thread::spawn(move || {
        // An address in use twice ends it: the last client says so with its byte.
        while let Ok((mut client, _)) = listener.accept() {
            let mut byte = [0];
            if client.read(&mut byte).is_ok_and(|count| count == 1) {
                return;
            }
        }
    });
    let (begin, mut made, mut refused) = (Instant::now(), 0, 0);
    while begin.elapsed() < time {
        match TcpStream::connect(address) {
            Ok(client) => {
                client.shutdown(std::net::Shutdown::Write)?;
                made += 1;
            }
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                refused += 1;
                thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(error),
        }
    }
    // A port outside of the range is still free.
    set("net.ipv4.ip_local_port_range", "40000 40999")?;
    TcpStream::connect(address)?.write_all(b"x")?;
    accepting.join().map_err(|_| io::Error::other("the server's thread panicked"))?;
    Ok((made, refused))
}
