//! L2 stub.
use super::cache::{Cache, Miss, Refused, SessionId, Stored};
use std::sync::Mutex;
/// Shared.
#[derive(Debug)]
pub struct Shared(Mutex<Cache>);
impl Shared {
    /// n
    pub fn new(entries: usize, bytes: usize) -> Self {
        Self(Mutex::new(Cache::new(entries, bytes)))
    }
    /// g
    pub fn get(&self, id: &SessionId, now: u32) -> Result<Stored, Miss> {
        self.0.try_lock().map_err(|_| Miss::Contended)?.get(id, now).cloned()
    }
    /// t
    pub fn take(&self, id: &SessionId, now: u32) -> Result<Stored, Miss> {
        let mut c = self.0.try_lock().map_err(|_| Miss::Contended)?;
        let s = c.get(id, now).cloned();
        c.remove(id);
        s
    }
    /// i
    pub fn insert(&self, id: SessionId, stored: Stored, now: u32) -> Result<u8, Refused> {
        self.0.try_lock().map_err(|_| Refused::Contended)?.insert(id, stored, now)
    }
    /// e
    pub fn entries(&self) -> usize {
        self.0.lock().map_or(0, |c| c.entries())
    }
    /// b
    pub fn bytes(&self) -> usize {
        self.0.lock().map_or(0, |c| c.bytes())
    }
}
