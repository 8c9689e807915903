//! TEMP
use crate::io::Time;
/// T
#[derive(Debug)]
pub struct Wheel {
    heap: std::collections::BinaryHeap<std::cmp::Reverse<(Time, u32, u32)>>,
}
impl Wheel {
    /// N
    pub fn new(_now: Time) -> Self {
        Self {
            heap: Default::default(),
        }
    }
    /// I
    pub fn insert(&mut self, slot: u32, generation: u32, at: Time) {
        self.heap.push(std::cmp::Reverse((at, slot, generation)));
    }
    /// E
    pub fn expire(&mut self, now: Time, out: &mut Vec<(u32, u32)>) {
        while let Some(std::cmp::Reverse((at, s, g))) = self.heap.peek().copied() {
            if at > now {
                break;
            }
            self.heap.pop();
            out.push((s, g));
        }
    }
    /// X
    pub fn next(&self) -> Option<Time> {
        self.heap.peek().map(|r| r.0.0)
    }
}
