//! The `xtent` command.
fn main() {}
