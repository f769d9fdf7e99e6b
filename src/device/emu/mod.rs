//! The embedded NVMe controller: a real device side, in this process.
