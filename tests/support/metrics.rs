//! Reading `/metrics`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// One sample line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// Everything one scrape gave.
#[derive(Debug, Clone)]
pub(crate) struct Metrics(pub(crate) Vec<Sample>);

impl Metrics {
    /// The sum over all series whose name and given labels match, or `None` without any. A
    /// selector reads `portcullis_handshakes_total{outcome="ok"}`; labels not named may be
    /// anything, so that this adds up the workers.
    pub(crate) fn find(&self, selector: &str) -> Option<f64> {
        let wanted = sample(&format!("{selector} 0")).unwrap_or_else(|| panic!("{selector}"));
        let mut matching = self
            .0
            .iter()
            .filter(|sample| {
                sample.name == wanted.name
                    && wanted
                        .labels
                        .iter()
                        .all(|(key, value)| sample.labels.get(key) == Some(value))
            })
            .peekable();
        matching.peek()?;
        Some(matching.map(|sample| sample.value).sum())
    }

    /// As [`Metrics::find`]; a series that is not there yet counts as 0.
    pub(crate) fn get(&self, selector: &str) -> f64 {
        self.find(selector).unwrap_or(0.0)
    }
}

/// Parses one sample line of the Prometheus text format, version 0.0.4 or `OpenMetrics` 1.0.
pub(crate) fn sample(line: &str) -> Option<Sample> {
    let name_end = line.find(['{', ' '])?;
    let name = &line[..name_end];
    let word = |text: &str| {
        !text.is_empty()
            && !text.starts_with(|c: char| c.is_ascii_digit())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
    };
    if !word(name) {
        return None;
    }
    let mut labels = BTreeMap::new();
    let mut rest = &line[name_end..];
    if let Some(mut inside) = rest.strip_prefix('{') {
        while !inside.starts_with('}') {
            let (key, after) = inside.split_once("=\"")?;
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next()? {
                    (_, '\\') => match chars.next()?.1 {
                        'n' => value.push('\n'),
                        c @ ('\\' | '"') => value.push(c),
                        _ => return None,
                    },
                    (end, '"') => break end,
                    (_, c) => value.push(c),
                }
            };
            if !word(key) || labels.insert(key.to_owned(), value).is_some() {
                return None;
            }
            inside = &after[end + 1..];
            inside = inside.strip_prefix(',').unwrap_or(inside);
        }
        rest = &inside[1..];
    }
    let value = rest.strip_prefix(' ')?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        number => number.parse().ok()?,
    };
    Some(Sample { name: name.to_owned(), labels, value })
}

/// Status code and body of `GET path`.
pub(crate) fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, super::SOON)?;
    stream.set_read_timeout(Some(super::SOON))?;
    // In one write, so that a server which answers early does not meet a second one.
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let invalid = || std::io::Error::other(format!("not an HTTP answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(invalid)?;
    let status = head
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
        .ok_or_else(invalid)?;
    Ok((status, body.to_owned()))
}

/// One scrape; comment lines are left out, every other line must parse.
#[track_caller]
pub(crate) fn scrape(address: SocketAddr) -> Metrics {
    let (status, body) = get(address, "/metrics").unwrap();
    assert_eq!(status, 200, "{body}");
    Metrics(
        body.lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| sample(line).unwrap_or_else(|| panic!("no sample line: {line:?}")))
            .collect(),
    )
}
