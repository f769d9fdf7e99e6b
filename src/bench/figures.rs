//! The figures by which two sides are compared.

use super::hist::{count_text, time_text};
use super::rounds::{Figures, Ratio, Rounds, RoundsRow};

/// A figure of a side.
pub(super) struct Figure {
    pub(super) name: &'static str,
    /// Of each round.
    pub(super) of: fn(&Rounds) -> Figures,
    /// Of all rounds together.
    pub(super) all: fn(&Rounds) -> f64,
    pub(super) text: fn(f64) -> String,
    /// Whether the ratio is xtent by kernel (more is better) or kernel by xtent.
    pub(super) more_is_better: bool,
}

pub(super) const P50: Figure = Figure {
    name: "p50",
    of: |rounds| rounds.percentile_ns(50.0),
    all: |rounds| rounds.all_percentile_ns(50.0),
    text: time_text,
    more_is_better: false,
};

pub(super) const IOPS: Figure = Figure {
    name: "IOPS",
    of: Rounds::iops,
    all: Rounds::all_iops,
    text: count_text,
    more_is_better: true,
};

pub(super) const P99: Figure = Figure {
    name: "p99",
    of: |rounds| rounds.percentile_ns(99.0),
    all: |rounds| rounds.all_percentile_ns(99.0),
    ..P50
};

pub(super) const P99_9: Figure = Figure {
    name: "p99.9",
    of: |rounds| rounds.percentile_ns(99.9),
    all: |rounds| rounds.all_percentile_ns(99.9),
    ..P50
};

/// How many times better xtent is, where both were measured: above 1 is better in every figure.
pub(super) fn advantage(figure: &Figure, row: &RoundsRow) -> Option<Ratio> {
    let better = |kernel: f64, xtent: f64| {
        let ratio = if figure.more_is_better {
            xtent / kernel
        } else {
            kernel / xtent
        };
        (kernel > 0.0 && xtent > 0.0).then_some(ratio)
    };
    let [kernel, xtent] = [&row.kernel, &row.xtent].map(|side| (figure.of)(side).0);
    let rounds = kernel.into_iter().zip(xtent);
    Some(Ratio {
        all: better((figure.all)(&row.kernel), (figure.all)(&row.xtent))?,
        rounds: rounds.filter_map(|(k, x)| better(k, x)).collect(),
    })
}
