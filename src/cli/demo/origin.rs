//! The demo's web server: plaintext HTTP/1.1 on a port of the kernel's choice, on its own thread.
//! It stands for the application behind Portcullis and tells what reached it.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

/// Bytes of a PROXY protocol v1 header, at most (its specification, section 2.1).
const PROXY_HEADER_BYTES_MAX: usize = 107;

/// Starts the thread; it lives as long as the process.
pub(super) fn start() -> io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("demo-origin".into()).spawn(move || {
        if let Err(error) = runtime.block_on(serve(listener)) {
            tracing::error!("the demo's origin ended: {error}");
        }
    })?;
    Ok(address)
}

async fn serve(listener: std::net::TcpListener) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(async move {
                    if let Err(error) = converse(stream).await {
                        tracing::debug!("a connection to the demo's origin ended: {error}");
                    }
                });
            }
            // Out of descriptors: they come back with time, not with haste.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    }
}

async fn converse(stream: TcpStream) -> io::Result<()> {
    let client = read_proxy_header(&stream).await?;
    let service = service_fn(move |request: Request<Incoming>| {
        let page = page(&request, client.as_deref());
        async move { Ok::<_, Infallible>(page) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

/// Takes the PROXY protocol v1 header off the stream, if there is one; the client's address.
async fn read_proxy_header(stream: &TcpStream) -> io::Result<Option<String>> {
    let mut bytes = [0; PROXY_HEADER_BYTES_MAX];
    let seen = stream.peek(&mut bytes).await?;
    let seen = bytes.get(..seen).unwrap_or_default();
    // Portcullis sends the header in one piece and before anything else.
    let Some(end) = seen.windows(2).position(|pair| pair == b"\r\n") else {
        return Ok(None);
    };
    let Some(header) = seen.get(..end).filter(|header| header.starts_with(b"PROXY ")) else {
        return Ok(None);
    };
    let client = client_of(&String::from_utf8_lossy(header));
    let mut taken = vec![0; end + 2];
    stream.readable().await?;
    if stream.try_read(&mut taken)? != taken.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(client)
}

/// "PROXY TCP4 192.0.2.1 192.0.2.2 4711 443" to "192.0.2.1 port 4711".
fn client_of(header: &str) -> Option<String> {
    let mut words = header.split(' ').skip(2);
    let (ip, port) = (words.next()?, words.nth(1)?);
    Some(format!("{ip} port {port}"))
}

fn page<B>(request: &Request<B>, client: Option<&str>) -> Response<Full<Bytes>> {
    use std::fmt::Write as _;

    let mut text = format!(
        "Hello from behind Portcullis.\n\nclient:  {}\nrequest: {} {}\n",
        client.unwrap_or("not told (no PROXY header)"),
        request.method(),
        request.uri(),
    );
    for (name, value) in request.headers() {
        // Writing into a String does not fail.
        let _infallible =
            writeln!(text, "header:  {name}: {}", String::from_utf8_lossy(value.as_bytes()));
    }
    let mut response = Response::new(Full::new(text.into()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::time::Duration;

    use super::*;

    fn ask(request: &str) -> String {
        let mut stream = std::net::TcpStream::connect(start().unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn it_tells_the_client_from_the_proxy_header_and_what_was_asked() {
        let answer = ask("PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\r\n\
             GET /path?q HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("192.0.2.1 port 4711"), "{answer}");
        assert!(answer.contains("GET /path?q"), "{answer}");
    }

    #[test]
    fn it_answers_without_a_proxy_header_too() {
        let answer = ask("GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("not told"), "{answer}");
    }
}
