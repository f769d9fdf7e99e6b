//! Seeded allocations and releases beside a model, on filesystems that mkfs.xfs made, until they
//! are full and empty again. After each round all structures of all groups are compared with each
//! other and with the model; at the end `xfs_repair -n` is asked.
#![expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

mod audit;
mod churn;
mod image;
mod limits;
mod sharing;
