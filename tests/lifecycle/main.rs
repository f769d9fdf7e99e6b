//! What lives on when something goes: volumes, `Io`s, files and views that are dropped, leaked or
//! used by callbacks that panic, in every order, on devices that fail.
//!
//! `XTENT_RUNS` says how many seeded runs of the campaign (120), `XTENT_SEED` the first seed (1). A
//! failure prints its seed; `XTENT_SEED=N XTENT_RUNS=1` replays it, as far as the scheduler lets 4
//! threads be replayed.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code: a failure panics, sizes are its own"
)]

#[path = "../common/mod.rs"]
mod common;

mod campaign;
mod disk;
mod drops;
mod model;
mod stand;
mod views;
mod watch;
mod worker;
