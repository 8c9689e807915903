//! A setting's value: whole numbers or a word, compared without regard to tabs and spaces.

use std::fmt;

/// What a file below `/proc/sys` holds, or should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value(String);

impl Value {
    /// From a file's text. The kernel separates by tabs, people by spaces.
    pub fn parse(text: &str) -> Self {
        Self(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// From numbers.
    pub fn of(numbers: &[u64]) -> Self {
        Self(numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" "))
    }

    /// The chosen word of a list such as `always [madvise] never`.
    pub fn chosen(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once('[')?;
        Some(Self::parse(rest.split_once(']')?.0))
    }

    /// Its numbers; `None` when it is a word, or negative.
    pub fn numbers(&self) -> Option<Vec<u64>> {
        self.0.split(' ').map(|word| word.parse().ok()).collect()
    }

    /// Its last number: the maximum of a triple, or the only one.
    pub fn last(&self) -> Option<u64> {
        self.numbers()?.last().copied()
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Number by number the larger, or with `max` false the smaller one. Where the two do not have
    /// the same shape, `other`.
    #[must_use]
    pub fn merge(&self, other: &Self, max: bool) -> Self {
        let (Some(mine), Some(others)) = (self.numbers(), other.numbers()) else {
            return other.clone();
        };
        if mine.len() != others.len() {
            return other.clone();
        }
        let pick = |(a, b): (&u64, &u64)| if max { *a.max(b) } else { *a.min(b) };
        Self::of(&mine.iter().zip(&others).map(pick).collect::<Vec<_>>())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for Value {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Value {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::parse(&String::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_makes_no_difference() {
        assert_eq!(Value::parse("4096\t87380\t6291456\n"), Value::parse("4096 87380 6291456"));
        assert_eq!(Value::parse("1 2 3").last(), Some(3));
        assert_eq!(Value::parse("-1").numbers(), None);
    }

    #[test]
    fn a_merge_takes_each_number_by_itself() {
        let (mine, other) = (Value::parse("1 9 5"), Value::parse("2 3 5"));
        assert_eq!(mine.merge(&other, true), Value::parse("2 9 5"));
        assert_eq!(mine.merge(&other, false), Value::parse("1 3 5"));
        assert_eq!(mine.merge(&Value::parse("cubic"), true), Value::parse("cubic"));
    }

    #[test]
    fn the_chosen_word_stands_in_brackets() {
        assert_eq!(Value::chosen("always [madvise] never"), Some(Value::parse("madvise")));
        assert_eq!(Value::chosen("madvise"), None);
    }
}
