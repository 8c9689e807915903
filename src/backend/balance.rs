//! TEMP
/// T
#[derive(Debug)]
pub struct RoundRobin {
    at: usize,
}
impl RoundRobin {
    /// N
    pub fn new(worker: u16) -> Self {
        Self {
            at: usize::from(worker),
        }
    }
    /// N
    pub fn next(&mut self, servers: usize) -> Option<usize> {
        if servers == 0 {
            return None;
        }
        self.at += 1;
        Some(self.at % servers)
    }
    /// N
    pub fn next_except(&mut self, servers: usize, failed: usize) -> Option<usize> {
        let n = self.next(servers)?;
        if n == failed {
            self.next(servers)
        } else {
            Some(n)
        }
    }
}
