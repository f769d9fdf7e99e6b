//! The rounds of each side on one workload: figures of each, of all together, and how the sides
//! compare.

use std::fmt;

use serde_json::{Value, json};

use super::fio_json::{self, LatencyForm};
use super::hist::{Direction, rate, three_digits};
use super::outcome::Outcome;
use super::usage::CpusInUse;
use super::workload::Workload;

/// One figure of every round, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures(pub(crate) Vec<f64>);

impl Figures {
    /// 0 without rounds.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => 0.0,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    /// The lowest and the highest; zeros without rounds.
    pub(crate) fn spread(&self) -> (f64, f64) {
        let lowest = self.0.iter().copied().min_by(f64::total_cmp);
        let highest = self.0.iter().copied().max_by(f64::total_cmp);
        (lowest.unwrap_or(0.0), highest.unwrap_or(0.0))
    }
}

/// The rounds of one side on one workload.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rounds {
    pub(crate) engine: String,
    pub(crate) outcomes: Vec<Outcome>,
}

impl Rounds {
    /// A figure of each round.
    fn each(&self, figure: impl Fn(&Outcome) -> f64) -> Figures {
        Figures(self.outcomes.iter().map(figure).collect())
    }

    pub(crate) fn percentile_ns(&self, percent: f64) -> Figures {
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        self.each(|outcome| outcome.all().percentile_ns(percent) as f64)
    }

    pub(crate) fn iops(&self) -> Figures {
        self.each(|outcome| rate(outcome.all().ios(), seconds(outcome)))
    }

    pub(crate) fn bytes_per_second(&self) -> Figures {
        self.each(|outcome| rate(outcome.all().bytes, seconds(outcome)))
    }

    /// CPUs that this process used.
    pub(crate) fn process_cpus(&self) -> Figures {
        self.each(|outcome| outcome.cpus.process)
    }

    /// CPUs that the machine used: what the kernel's threads do for a side is in here only.
    pub(crate) fn machine_cpus(&self) -> Figures {
        self.each(|outcome| outcome.cpus.machine)
    }

    /// Processor time, on average of all rounds.
    pub(crate) fn cpus(&self) -> CpusInUse {
        let mut all = CpusInUse::default();
        self.outcomes
            .iter()
            .for_each(|outcome| all.add(&outcome.cpus));
        all
    }

    /// Each round, reads and writes apart.
    pub(crate) fn json(&self) -> Vec<Value> {
        let round = |outcome: &Outcome| {
            let mut round = fio_json::job(outcome, LatencyForm::PLAIN);
            round.retain(|key, _| {
                ["read", "write", "sync", "usr_cpu", "sys_cpu"].contains(&key.as_str())
            });
            round.insert("interrupted".into(), outcome.interrupted.into());
            round.insert("cpus_used".into(), json!(outcome.cpus));
            Value::Object(round)
        };
        self.outcomes.iter().map(round).collect()
    }

    /// Figures of all rounds together, as the charts show them.
    pub(crate) fn all_json(&self) -> Value {
        let all = self.together();
        json!({
            "p50_ns": all.percentile_ns(50.0),
            "p99_ns": all.percentile_ns(99.0),
            "p99.9_ns": all.percentile_ns(99.9),
            "p99.99_ns": all.percentile_ns(99.99),
            "iops": self.all_iops(),
            "bw_bytes": self.all_bytes_per_second(),
            "cpus_used": self.cpus(),
        })
    }

    /// All rounds, reads and writes together.
    pub(crate) fn together(&self) -> Direction {
        let mut all = Direction::default();
        for outcome in &self.outcomes {
            all.add(&outcome.all());
        }
        all
    }

    fn all_seconds(&self) -> f64 {
        self.outcomes.iter().map(seconds).sum::<f64>().max(1e-9)
    }

    pub(crate) fn all_percentile_ns(&self, percent: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let ns = self.together().percentile_ns(percent) as f64;
        ns
    }

    pub(crate) fn all_iops(&self) -> f64 {
        rate(self.together().ios(), self.all_seconds())
    }

    pub(crate) fn all_bytes_per_second(&self) -> f64 {
        rate(self.together().bytes, self.all_seconds())
    }

    /// A run that the user ended is among them.
    pub(crate) fn interrupted(&self) -> bool {
        self.outcomes.iter().any(|outcome| outcome.interrupted)
    }
}

fn seconds(outcome: &Outcome) -> f64 {
    outcome.elapsed.as_secs_f64().max(1e-9)
}

/// One workload with what both sides made of it.
#[derive(Debug, Clone)]
pub(crate) struct RoundsRow {
    pub(crate) workload: Workload,
    pub(crate) kernel: Rounds,
    pub(crate) xtent: Rounds,
    /// Why xtent did not run it.
    pub(crate) unsupported: Option<String>,
}

impl RoundsRow {
    /// Whether nothing of it was measured.
    pub(crate) fn is_empty(&self) -> bool {
        self.kernel.outcomes.is_empty() && self.xtent.outcomes.is_empty()
    }
}

/// Ratios of the rounds may lie this far apart, the highest by the lowest.
const STABLE: f64 = 1.25;

/// How many times better one side is than the other: of all rounds together, and of each pair of
/// rounds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ratio {
    /// From the same distributions as the charts.
    pub(crate) all: f64,
    pub(crate) rounds: Vec<f64>,
}

impl Ratio {
    pub(crate) fn lowest(&self) -> f64 {
        self.rounds.iter().copied().fold(self.all, f64::min)
    }

    pub(crate) fn highest(&self) -> f64 {
        self.rounds.iter().copied().fold(self.all, f64::max)
    }

    /// Whether the rounds, and all of them together, say the same. One round has no spread.
    pub(crate) fn is_stable(&self) -> bool {
        self.rounds.len() < 2 || self.highest() <= self.lowest() * STABLE
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "all_rounds": self.all,
            "rounds": self.rounds,
            "lowest": self.lowest(),
            "highest": self.highest(),
            "stable": self.is_stable(),
        })
    }
}

/// `5.18x`; or, where the rounds differ widely, `5.18..9.93x`.
impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if self.is_stable() {
            format!("{}x", three_digits(self.all))
        } else {
            let [lowest, highest] = [self.lowest(), self.highest()].map(three_digits);
            format!("{lowest}..{highest}x")
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_that_differ_widely_give_a_range() {
        let ratio = |all, rounds: &[f64]| Ratio {
            all,
            rounds: rounds.to_vec(),
        };
        let wide = ratio(6.49, &[5.18, 5.37, 9.93]);
        assert!(!wide.is_stable());
        assert_eq!(wide.to_string(), "5.18..9.93x");
        assert_eq!(wide.json()["stable"], false);
        let stable = ratio(5.2, &[5.18, 5.37, 5.1]);
        assert_eq!(stable.to_string(), "5.20x");
        // What all rounds together say must lie by the rounds.
        assert!(!ratio(39.6, &[4.5, 4.6]).is_stable());
        assert!(ratio(39.6, &[4.5]).is_stable());
        assert_eq!(format!("{:>9}", ratio(1.0, &[])), "    1.00x");
    }

    #[test]
    fn figures_of_all_rounds_are_those_of_the_merged_ones() {
        let mut rounds = Rounds::default();
        for (ns, count) in [(1_000, 10), (9_000, 30)] {
            let mut outcome = Outcome {
                elapsed: std::time::Duration::from_secs(1),
                ..Outcome::default()
            };
            (0..count).for_each(|_| outcome.read.record_ns(ns, 4096));
            rounds.outcomes.push(outcome);
        }
        assert!((rounds.all_percentile_ns(50.0) - 9_000.0).abs() < 20.0);
        assert!((rounds.percentile_ns(50.0).median() - 5_000.0).abs() < 20.0);
        assert!((rounds.all_iops() - 20.0).abs() < 1e-9);
        assert_eq!(rounds.all_json()["bw_bytes"], 20.0 * 4096.0);
    }
}
