//! The control thread's side: certificates, capacity, topology. It may block, allocate and log.

pub mod capacity;
pub mod certificates;
pub mod topology;
