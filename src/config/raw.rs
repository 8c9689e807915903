//! The file as it was written: a TOML tree that knows where each value stands.
//!
//! Why not a derived serde mirror: serde stops at the first problem, and an operator wants all of
//! them at once. A [`Table`] is read key by key; what nobody asked for is an unknown key.

use std::fmt;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::Position;

/// One thing that is wrong, where, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where; the key is empty for an error of TOML's syntax.
    pub at: Position,
    /// The value as it was written, if there is one.
    pub value: Option<String>,
    /// What is wrong and what is accepted.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.at.file.display(), self.at.line)?;
        match &self.value {
            Some(value) => write!(f, "{} = {value}: ", self.at.key)?,
            None if self.at.key.is_empty() => {}
            None => write!(f, "{}: ", self.at.key)?,
        }
        f.write_str(&self.message)
    }
}

/// The text, its file's name, and what was found wrong so far.
pub(super) struct Reader<'d> {
    file: &'d Path,
    text: &'d str,
    pub(super) problems: Vec<Problem>,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Item<T> {
    pub(super) value: T,
    pub(super) at: Position,
}

/// One table of the file.
pub(super) struct Table<'d> {
    at: Position,
    entries: Option<&'d DeTable<'d>>,
    known: Vec<&'static str>,
}

impl<'d> Reader<'d> {
    pub(super) fn new(file: &'d Path, text: &'d str) -> Self {
        Self { file, text, problems: Vec::new() }
    }

    /// The place of a byte.
    pub(super) fn position(&self, offset: usize, key: String) -> Position {
        let before = self.text.get(..offset).unwrap_or_default();
        Position { file: self.file.to_owned(), line: 1 + before.matches('\n').count(), key }
    }

    /// Notes a problem of a key that is missing or of a table as a whole.
    pub(super) fn problem(&mut self, at: &Position, message: impl Into<String>) {
        self.problems.push(Problem { at: at.clone(), value: None, message: message.into() });
    }

    /// Notes a problem of a value.
    pub(super) fn refuse(
        &mut self,
        at: &Position,
        value: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.problems.push(Problem {
            at: at.clone(),
            value: Some(value.into()),
            message: message.into(),
        });
    }

    /// The file's outermost table.
    pub(super) fn root(&self, entries: &'d DeTable<'d>) -> Table<'d> {
        Table { at: self.position(0, String::new()), entries: Some(entries), known: Vec::new() }
    }

    fn item(&mut self, raw: Raw<'d>, expected: &str) -> Option<Item<String>> {
        if let DeValue::String(text) = raw.value {
            return Some(Item { value: text.to_string(), at: raw.at });
        }
        self.refuse(&raw.at, shown(raw.value), format!("expected {expected}"));
        None
    }
}

struct Raw<'d> {
    value: &'d DeValue<'d>,
    at: Position,
}

impl<'d> Table<'d> {
    /// Where the table's header stands.
    pub(super) fn at(&self) -> &Position {
        &self.at
    }

    /// Whether the table is in the file.
    pub(super) fn is_present(&self) -> bool {
        self.entries.is_some()
    }

    fn child_key(&self, key: &str) -> String {
        if self.at.key.is_empty() { key.to_owned() } else { format!("{}.{key}", self.at.key) }
    }

    fn raw(&mut self, reader: &Reader<'d>, key: &'static str) -> Option<Raw<'d>> {
        self.known.push(key);
        let value = self.entries?.get(key)?;
        Some(Raw {
            at: reader.position(value.span().start, self.child_key(key)),
            value: value.get_ref(),
        })
    }

    /// Notes that a key without default is missing. True when it is there.
    pub(super) fn require(&self, reader: &mut Reader<'d>, key: &str, expected: &str) -> bool {
        let present = self.entries.is_some_and(|entries| entries.contains_key(key));
        if !present {
            let at = Position { key: self.child_key(key), ..self.at.clone() };
            reader.problem(&at, format!("is missing; expected {expected}"));
        }
        present
    }

    pub(super) fn string(
        &mut self,
        reader: &mut Reader<'d>,
        key: &'static str,
        expected: &str,
    ) -> Option<Item<String>> {
        let raw = self.raw(reader, key)?;
        reader.item(raw, expected)
    }

    /// A list of strings; elements that are no strings are noted and left out.
    pub(super) fn strings(
        &mut self,
        reader: &mut Reader<'d>,
        key: &'static str,
        expected: &str,
    ) -> Option<Item<Vec<Item<String>>>> {
        let raw = self.raw(reader, key)?;
        let DeValue::Array(array) = raw.value else {
            reader.refuse(&raw.at, shown(raw.value), format!("expected a list of {expected}"));
            return None;
        };
        let mut value = Vec::with_capacity(array.len());
        for (index, element) in array.iter().enumerate() {
            let at = reader.position(element.span().start, format!("{}[{index}]", raw.at.key));
            let element = Raw { value: element.get_ref(), at };
            value.extend(reader.item(element, expected));
        }
        Some(Item { value, at: raw.at })
    }

    /// An integer or a string, as text; `true` when it was an integer.
    pub(super) fn integer_or_string(
        &mut self,
        reader: &mut Reader<'d>,
        key: &'static str,
        expected: &str,
    ) -> Option<(Item<String>, bool)> {
        let raw = self.raw(reader, key)?;
        if let DeValue::Integer(integer) = raw.value {
            let value = i128::from_str_radix(integer.as_str(), integer.radix())
                .map_or_else(|_| integer.as_str().to_owned(), |number| number.to_string());
            return Some((Item { value, at: raw.at }, true));
        }
        reader.item(raw, expected).map(|item| (item, false))
    }

    /// A table, or an empty one where the file has none.
    pub(super) fn table(&mut self, reader: &mut Reader<'d>, key: &'static str) -> Table<'d> {
        let absent = Table {
            at: Position { key: self.child_key(key), ..self.at.clone() },
            entries: None,
            known: Vec::new(),
        };
        let Some(raw) = self.raw(reader, key) else {
            return absent;
        };
        let DeValue::Table(entries) = raw.value else {
            let message = format!("expected a table, written [{}]", raw.at.key);
            reader.refuse(&raw.at, shown(raw.value), message);
            return absent;
        };
        Table { at: raw.at, entries: Some(entries), known: Vec::new() }
    }

    /// A list of tables; `None` when the key is there but is something else.
    pub(super) fn tables(
        &mut self,
        reader: &mut Reader<'d>,
        key: &'static str,
    ) -> Option<Vec<Table<'d>>> {
        let Some(raw) = self.raw(reader, key) else {
            return Some(Vec::new());
        };
        let mut tables = Vec::new();
        if let DeValue::Array(array) = raw.value {
            for (index, element) in array.iter().enumerate() {
                if let DeValue::Table(entries) = element.get_ref() {
                    let key = format!("{}[{index}]", raw.at.key);
                    tables.push(Table {
                        at: reader.position(element.span().start, key),
                        entries: Some(entries),
                        known: Vec::new(),
                    });
                }
            }
            if tables.len() == array.len() {
                return Some(tables);
            }
        }
        let mut header = raw.at.key.clone();
        header.retain(|c| !c.is_ascii_digit() && c != '[' && c != ']');
        let message = format!("expected one or more tables, each written [[{header}]]");
        reader.refuse(&raw.at, shown(raw.value), message);
        None
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(self, reader: &mut Reader<'d>) {
        let Some(entries) = self.entries else {
            return;
        };
        for key in entries.keys() {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let at = reader.position(key.span().start, self.child_key(name));
            let near = self.known.iter().find(|known| alike(known, name));
            let hint = near.map_or_else(String::new, |known| format!(" did you mean \"{known}\"?"));
            let known = self.known.join(", ");
            reader.problem(&at, format!("unknown key;{hint} keys here are: {known}"));
        }
    }
}

/// Whether one was probably meant to be the other: an edit distance of at most two.
fn alike(known: &str, written: &str) -> bool {
    let written: Vec<char> = written.chars().collect();
    let mut row: Vec<usize> = (0..=written.len()).collect();
    for (line, a) in known.chars().enumerate() {
        let mut next = vec![line + 1];
        for ((diagonal, above), b) in row.iter().zip(row.iter().skip(1)).zip(&written) {
            let left = next.last().copied().unwrap_or_default();
            let replaced = diagonal + usize::from(a != *b);
            next.push(replaced.min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().is_some_and(|distance| *distance <= 2)
}

/// A value as an operator wrote it, cut where it gets long.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quoted(text),
        DeValue::Integer(integer) => integer.to_string(),
        DeValue::Float(float) => float.to_string(),
        DeValue::Boolean(boolean) => boolean.to_string(),
        DeValue::Datetime(datetime) => datetime.to_string(),
        DeValue::Array(_) => "[…]".to_owned(),
        DeValue::Table(_) => "{…}".to_owned(),
    }
}

/// A string in quotes, cut where it gets long.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 80;
    if text.chars().count() <= SHOWN_CHARS_MAX {
        return format!("{text:?}");
    }
    let start: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    format!("{start:?}…")
}
