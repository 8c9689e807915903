//! What clients ask, and where an answer ends: HTTP/1.1, or so many bytes each way.

use httparse::Status;

/// Bytes of an HTTP response's head, at most.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Header fields of a response, at most.
const FIELDS_MAX: usize = 128;

/// One question, asked over and over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What goes first, as it is.
    pub head: Vec<u8>,
    /// Zeros that follow.
    pub body_bytes: u64,
    /// How its answer ends.
    pub answer: AnswerKind,
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// After so many bytes.
    Raw {
        /// How many.
        bytes: u64,
    },
    /// As RFC 9112 section 6.3 says.
    Http,
}

impl Question {
    /// `up` bytes, answered by `down`.
    pub fn raw(up: u64, down: u64) -> Self {
        Self { head: Vec::new(), body_bytes: up, answer: AnswerKind::Raw { bytes: down } }
    }

    /// A request for `path` of `host`: GET, or POST with `up` bytes if that is not 0.
    pub fn http(host: &str, path: &str, up: u64) -> Self {
        let (method, body) = if up == 0 {
            ("GET", String::new())
        } else {
            ("POST", format!("Content-Type: application/octet-stream\r\nContent-Length: {up}\r\n"))
        };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: portcullis-load\r\n\
             Accept: */*\r\n{body}\r\n"
        );
        Self { head: head.into_bytes(), body_bytes: up, answer: AnswerKind::Http }
    }

    /// An answer of which nothing has come.
    pub fn answer(&self) -> Answer {
        match self.answer {
            AnswerKind::Raw { bytes } => Answer::Bytes(bytes),
            AnswerKind::Http => Answer::Head(Vec::new()),
        }
    }

    /// Bytes of one question.
    pub fn bytes(&self) -> u64 {
        self.head.len() as u64 + self.body_bytes
    }
}

/// Why an answer is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadAnswer {
    /// No HTTP response, or a head of more than 64 KiB.
    Malformed,
    /// More bytes than the answer has.
    TooLong,
    /// A status of 400 or above.
    Status(u16),
}

/// An answer of which a part has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// All has come.
    Complete,
    /// So many bytes are missing.
    Bytes(u64),
    /// The head of an HTTP response, as far as it has come.
    Head(Vec<u8>),
    /// A body in chunks.
    Chunks(Chunks),
    /// A body that ends with the connection.
    UntilClose,
}

impl Answer {
    /// Whether all has come.
    pub fn is_complete(&self) -> bool {
        matches!(self, Self::Complete | Self::Bytes(0))
    }

    /// Takes the server's end of the stream; whether that completes the answer.
    pub fn ends(&mut self) -> bool {
        if *self == Self::UntilClose {
            *self = Self::Complete;
        }
        self.is_complete()
    }

    /// Takes what has come.
    ///
    /// # Errors
    /// When it is no answer.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), BadAnswer> {
        match self {
            Self::Complete => Err(BadAnswer::TooLong),
            Self::UntilClose => Ok(()),
            Self::Bytes(missing) => {
                let rest = missing.checked_sub(bytes.len() as u64);
                *missing = rest.ok_or(BadAnswer::TooLong)?;
                Ok(())
            }
            Self::Chunks(chunks) => {
                if chunks.take(bytes)? {
                    *self = Self::Complete;
                }
                Ok(())
            }
            Self::Head(head) if head.is_empty() => match parse(bytes)? {
                Some((used, body)) => self.begin_body(body, bytes.get(used..)),
                None => self.keep_head(bytes),
            },
            Self::Head(head) => {
                let mut whole = std::mem::take(head);
                whole.extend_from_slice(bytes);
                match parse(&whole)? {
                    Some((used, body)) => self.begin_body(body, whole.get(used..)),
                    None => self.keep_head(&whole),
                }
            }
        }
    }

    fn keep_head(&mut self, bytes: &[u8]) -> Result<(), BadAnswer> {
        if bytes.len() > HEAD_BYTES_MAX {
            return Err(BadAnswer::Malformed);
        }
        *self = Self::Head(bytes.to_vec());
        Ok(())
    }

    fn begin_body(&mut self, body: Self, bytes: Option<&[u8]>) -> Result<(), BadAnswer> {
        *self = body;
        match bytes {
            Some(bytes) if !bytes.is_empty() => self.take(bytes),
            _ => Ok(()),
        }
    }
}

/// The head's length and what follows it; `None`: it is not whole.
fn parse(bytes: &[u8]) -> Result<Option<(usize, Answer)>, BadAnswer> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response.parse(bytes).map_err(|_| BadAnswer::Malformed)?;
    let Status::Complete(used) = parsed else {
        return Ok(None);
    };
    let status = response.code.unwrap_or_default();
    if (100..200).contains(&status) {
        // An interim response; the final one follows (RFC 9110 section 15.2).
        return Ok(Some((used, Answer::Head(Vec::new()))));
    }
    if status >= 400 {
        return Err(BadAnswer::Status(status));
    }
    if matches!(status, 204 | 304) {
        return Ok(Some((used, Answer::Complete)));
    }
    let mut body = Answer::UntilClose;
    for field in response.headers.iter() {
        if field.name.eq_ignore_ascii_case("transfer-encoding") {
            body = Answer::Chunks(Chunks::default());
            break;
        }
        if field.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(field.value).map_err(|_| BadAnswer::Malformed)?;
            let bytes = text.trim().parse().map_err(|_| BadAnswer::Malformed)?;
            body = Answer::Bytes(bytes);
        }
    }
    Ok(Some((used, body)))
}

/// A body in chunks (RFC 9112 section 7.1), of which a part has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chunks {
    at: At,
    /// Of a chunk's data: bytes that are missing, of its size: the number so far.
    number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum At {
    #[default]
    Size,
    /// Behind a size's digits: an extension, which is skipped.
    SizeLine,
    Data,
    /// The line's end behind a chunk's data.
    DataEnd,
    /// The first byte of a line behind the last chunk.
    Trailer,
    TrailerLine,
}

impl Chunks {
    /// Takes bytes; true: the last one was the body's last.
    fn take(&mut self, mut bytes: &[u8]) -> Result<bool, BadAnswer> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.at == At::Data {
                let part = usize::try_from(self.number).unwrap_or(usize::MAX).min(bytes.len());
                self.number -= part as u64;
                bytes = bytes.get(part..).unwrap_or_default();
                if self.number == 0 {
                    self.at = At::DataEnd;
                }
                continue;
            }
            bytes = rest;
            if self.take_byte(byte)? {
                return if bytes.is_empty() { Ok(true) } else { Err(BadAnswer::TooLong) };
            }
        }
        Ok(false)
    }

    fn take_byte(&mut self, byte: u8) -> Result<bool, BadAnswer> {
        match (self.at, byte) {
            (At::Size, byte) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                let number = self.number.checked_mul(16).ok_or(BadAnswer::Malformed)?;
                self.number = number + u64::from(digit);
            }
            (At::Size | At::SizeLine, b'\n') => {
                self.at = if self.number == 0 { At::Trailer } else { At::Data };
            }
            (At::Size, b'\r' | b';' | b' ' | b'\t') => self.at = At::SizeLine,
            (At::DataEnd, b'\n') => *self = Self::default(),
            (At::DataEnd | At::Trailer, b'\r') | (At::SizeLine | At::TrailerLine, _)
                if byte != b'\n' => {}
            (At::Trailer, b'\n') => return Ok(true),
            (At::TrailerLine, _) => self.at = At::Trailer,
            (At::Trailer, _) => self.at = At::TrailerLine,
            (At::Size | At::DataEnd | At::SizeLine | At::Data, _) => {
                return Err(BadAnswer::Malformed);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer after `text`, in one piece and byte by byte, which must come to the same.
    fn after(text: &str) -> Result<Answer, BadAnswer> {
        let question = Question::http("host", "/", 0);
        let mut whole = question.answer();
        let at_once = whole.take(text.as_bytes()).map(|()| whole);
        let mut pieces = question.answer();
        let mut piecewise = Ok(());
        for byte in text.bytes() {
            piecewise = piecewise.and_then(|()| pieces.take(&[byte]));
        }
        assert_eq!(at_once, piecewise.map(|()| pieces), "{text:?}");
        at_once
    }

    #[test]
    fn a_body_ends_after_its_content_length() {
        let answer = after("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        assert!(answer.unwrap().is_complete());
        let answer = after("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell");
        assert_eq!(answer, Ok(Answer::Bytes(1)));
        let answer = after("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello!");
        assert_eq!(answer, Err(BadAnswer::TooLong));
    }

    #[test]
    fn chunks_end_with_the_empty_one_and_its_trailer() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let whole = [head, "a;x=y\r\n0123456789\r\n1\r\n!\r\n0\r\nDigest: x\r\n\r\n"].concat();
        assert!(after(&whole).unwrap().is_complete());
        let cut = [head, "5\r\nhello\r\n0\r\n"].concat();
        assert!(!after(&cut).unwrap().is_complete());
        for bad in ["x\r\n", "5\r\nhello!\r\n", "fffffffffffffffff\r\n"] {
            let bad = [head, bad].concat();
            assert_eq!(after(&bad), Err(BadAnswer::Malformed), "{bad:?}");
        }
    }

    #[test]
    fn a_body_without_length_ends_with_the_connection() {
        let mut answer = after("HTTP/1.1 200 OK\r\n\r\nhello").unwrap();
        assert!(!answer.is_complete());
        assert!(answer.ends());
    }

    #[test]
    fn a_status_says_whether_a_body_follows_at_all() {
        assert!(after("HTTP/1.1 204 No Content\r\n\r\n").unwrap().is_complete());
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        assert!(after(interim).unwrap().is_complete());
        assert_eq!(after("HTTP/1.1 503 Busy\r\n\r\n"), Err(BadAnswer::Status(503)));
        assert_eq!(after("SSH-2.0-x\r\n"), Err(BadAnswer::Malformed));
    }

    #[test]
    fn raw_answers_are_counted() {
        let mut answer = Question::raw(10, 3).answer();
        assert_eq!(answer.take(b"ab"), Ok(()));
        assert!(!answer.is_complete());
        assert!(!answer.ends(), "cut");
        assert_eq!(answer.take(b"c"), Ok(()));
        assert!(answer.is_complete());
        assert_eq!(answer.take(b"d"), Err(BadAnswer::TooLong));
    }

    #[test]
    fn a_question_with_a_body_is_a_post() {
        let question = Question::http("a.example", "/x", 7);
        let head = String::from_utf8(question.head.clone()).unwrap();
        assert!(head.starts_with("POST /x HTTP/1.1\r\nHost: a.example\r\n"), "{head}");
        assert!(head.contains("Content-Length: 7\r\n"), "{head}");
        assert_eq!(question.bytes(), head.len() as u64 + 7);
    }
}
