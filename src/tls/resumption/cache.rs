//! L1 stub.
use super::Binding;
use std::collections::HashMap;
/// Id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId([u8; 32]);
impl TryFrom<&[u8]> for SessionId {
    type Error = std::array::TryFromSliceError;
    fn try_from(id: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self(id.try_into()?))
    }
}
/// Stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// b
    pub binding: Binding,
    /// e
    pub expires: u32,
    /// s
    pub state: Box<[u8]>,
}
/// Miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// n
    NotFound,
    /// e
    Expired,
    /// c
    Contended,
}
/// Refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// t
    TooLarge,
    /// c
    Contended,
}
/// Cache.
#[derive(Debug)]
pub struct Cache {
    map: HashMap<SessionId, Stored>,
}
impl Cache {
    /// n
    pub fn new(_entries: usize, _bytes: usize) -> Self {
        Self { map: HashMap::new() }
    }
    /// g
    pub fn get(&mut self, id: &SessionId, now: u32) -> Result<&Stored, Miss> {
        let s = self.map.get(id).ok_or(Miss::NotFound)?;
        if s.expires <= now { Err(Miss::Expired) } else { Ok(s) }
    }
    /// i
    pub fn insert(&mut self, id: SessionId, stored: Stored, _now: u32) -> Result<u8, Refused> {
        self.map.insert(id, stored);
        Ok(0)
    }
    /// r
    pub fn remove(&mut self, id: &SessionId) -> Option<Stored> {
        self.map.remove(id)
    }
    /// e
    pub fn entries(&self) -> usize {
        self.map.len()
    }
    /// b
    pub fn bytes(&self) -> usize {
        self.map.len() * 200
    }
}
