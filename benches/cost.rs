//! Instruction counts of the hot path.
fn main() {}
