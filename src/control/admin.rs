//! The admin endpoint: `/metrics`, `/healthz`, `/readyz` over HTTP/1.1. One request a connection, a
//! bounded number of connections, and deadlines: whoever reaches it cannot hold the control thread.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::limits::{ADMIN_CONNECTION_TIMEOUT, ADMIN_CONNECTIONS_MAX, ADMIN_HEADER_TIMEOUT};
use crate::telemetry::exposition::{self, Process};

use super::addresses::AddressError;
use super::kernel;

const TEXT: &str = "text/plain; charset=utf-8";

const INDEX: &str = "portcullis\n\n\
    /metrics  counters, in the OpenMetrics text format\n\
    /healthz  200 while serving, 503 while draining\n\
    /readyz   200 while every worker accepts connections\n";

/// What the endpoint tells about.
#[derive(Debug)]
pub struct Status {
    process: Arc<Process>,
    draining: Cell<bool>,
}

impl Status {
    /// Serving.
    pub fn new(process: Arc<Process>) -> Self {
        Self { process, draining: Cell::new(false) }
    }

    /// From now on draining.
    pub fn set_draining(&self) {
        self.draining.set(true);
    }
}

/// Binds the endpoint; [`serve`] answers.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, AddressError> {
    TcpListener::bind(address).await.map_err(|source| AddressError {
        what: "the admin endpoint (admin.bind)".into(),
        address,
        source,
    })
}

/// Answers until the task is dropped. Runs on the control thread's local set.
pub async fn serve(listener: TcpListener, status: Rc<Status>) {
    let places = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let status = Rc::clone(&status);
                tokio::task::spawn_local(async move {
                    let _place = place;
                    converse(stream, status).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "the admin endpoint cannot accept a connection");
                // Out of descriptors or memory: both come back with time, not with haste.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, status: Rc<Status>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&request, &status);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ADMIN_HEADER_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(ADMIN_CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an admin connection ended early"),
        Err(_) => tracing::debug!("an admin connection ran into its deadline"),
    }
}

fn answer<B>(request: &Request<B>, status: &Status) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    let draining = status.draining.get();
    match request.uri().path() {
        "/" => text(StatusCode::OK, INDEX),
        "/metrics" => {
            // What it does not tell stays as it was; the log has said so.
            let _told = kernel::refresh(&status.process.kernel);
            response(StatusCode::OK, exposition::CONTENT_TYPE, status.process.render())
        }
        "/healthz" | "/readyz" if draining => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" if status.process.workers.iter().all(exposition::Observed::is_up) => {
            text(StatusCode::OK, "ready\n")
        }
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "a worker is down\n"),
        _ => text(StatusCode::NOT_FOUND, "not found; / lists what is here\n"),
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    response(status, TEXT, body)
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::time::{Duration, SystemTime};

    use super::*;

    /// Sends one request to a real endpoint on a tokio-uring runtime; the whole answer.
    fn ask(status: Rc<Status>, request: &'static str) -> String {
        tokio_uring::start(async {
            let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = tokio_uring::spawn(serve(listener, status));
            let client = tokio::task::spawn_blocking(move || {
                let mut stream = std::net::TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                stream.write_all(request.as_bytes()).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer
            });
            let answer = client.await.unwrap();
            server.abort();
            answer
        })
    }

    fn status() -> Rc<Status> {
        let process = Arc::new(Process::new(1, SystemTime::now()));
        process.workers[0].set_up(true);
        Rc::new(Status::new(process))
    }

    #[test]
    fn metrics_are_served_as_open_metrics() {
        let answer = ask(status(), "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-type: application/openmetrics-text"));
        assert!(answer.contains("portcullis_worker_up{worker=\"0\"} 1\n"));
        assert!(answer.ends_with("# EOF\n"));
    }

    #[test]
    fn health_changes_when_draining() {
        let health = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
        let status = status();
        assert!(ask(Rc::clone(&status), health).starts_with("HTTP/1.1 200"));
        status.set_draining();
        assert!(ask(status, health).starts_with("HTTP/1.1 503"));
    }

    #[test]
    fn readiness_falls_with_a_worker() {
        let ready = "GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n";
        let status = status();
        assert!(ask(Rc::clone(&status), ready).starts_with("HTTP/1.1 200"));
        status.process.workers[0].set_up(false);
        assert!(ask(status, ready).starts_with("HTTP/1.1 503"));
    }

    #[test]
    fn other_methods_and_paths_are_refused() {
        let post = ask(status(), "POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert!(post.starts_with("HTTP/1.1 405"), "{post}");
        assert!(post.contains("allow: GET, HEAD"), "{post}");
        let head = ask(status(), "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(head.ends_with("\r\n\r\n"), "{head}");
        let other = ask(status(), "GET /etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(other.starts_with("HTTP/1.1 404"), "{other}");
    }
}
