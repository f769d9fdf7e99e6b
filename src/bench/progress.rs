//! Progress of long work, on stderr, when that is a terminal.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::hist::{bytes_text, count_text, rate};
use super::terminal::escape;

/// The time after which progress is shown: short commands print their results only.
const SHOWN_AFTER: Duration = Duration::from_secs(2);

/// A bar on a terminal; elsewhere nothing.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    /// When it is to be shown; `None` when it is shown, or never will be.
    due: Cell<Option<Instant>>,
}

fn styled(bar: ProgressBar, template: &str) -> Progress {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    // No steady tick: indicatif starts a thread for it, and panics where none can be had.
    bar.set_draw_target(ProgressDrawTarget::hidden());
    let due = std::io::stderr()
        .is_terminal()
        .then(|| Instant::now() + SHOWN_AFTER);
    Progress {
        bar,
        due: Cell::new(due),
    }
}

impl Progress {
    /// Counts bytes, with rate and remaining time.
    pub(crate) fn bytes(total: u64) -> Self {
        styled(
            ProgressBar::new(total),
            "{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} eta {eta}",
        )
    }

    /// Counts bytes whose total is not known.
    pub(crate) fn endless() -> Self {
        styled(
            ProgressBar::no_length(),
            "{spinner} {msg} {bytes} {binary_bytes_per_sec}",
        )
    }

    /// Counts steps.
    pub(crate) fn steps(total: u64) -> Self {
        styled(
            ProgressBar::new(total),
            "[{bar:30}] {pos}/{len} {msg} ({elapsed})",
        )
    }

    /// Counts parts of a load; [`load_text`] is its message.
    pub(crate) fn load(total: u64) -> Self {
        styled(ProgressBar::new(total), "[{bar:24}] {percent:>3} % {msg}")
    }

    /// Whether a terminal shows it.
    pub(crate) fn is_shown(&self) -> bool {
        if self.due.get().is_some_and(|due| Instant::now() >= due) {
            self.due.set(None);
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        !self.bar.is_hidden()
    }

    pub(crate) fn message(&self, text: impl Into<String>) {
        let text: String = text.into();
        self.bar.set_message(escape(&text).into_owned());
    }

    /// One line on stderr that stays.
    pub(crate) fn note(&self, text: &str) {
        self.bar.suspend(|| {
            let _ = writeln!(std::io::stderr(), "xtent: note: {}", escape(text));
        });
    }

    /// Does something that writes to the terminal, with the bar out of the way.
    pub(crate) fn aside(&self, write: impl FnOnce()) {
        self.bar.suspend(write);
    }

    /// Steps that were not added yet.
    pub(crate) fn steps_left(&self) -> u64 {
        let all = self.bar.length().unwrap_or(0);
        all.saturating_sub(self.bar.position())
    }

    pub(crate) fn add(&self, count: u64) {
        self.is_shown();
        self.bar.inc(count);
    }

    pub(crate) fn set(&self, position: u64) {
        self.is_shown();
        self.bar.set_position(position);
    }
}

/// The current speed of a load: over the last half second or more.
#[derive(Debug)]
pub(crate) struct Speed {
    since: Cell<(Instant, u64)>,
    iops: Cell<f64>,
}

impl Speed {
    pub(crate) fn new() -> Self {
        Self {
            since: Cell::new((Instant::now(), 0)),
            iops: Cell::new(0.0),
        }
    }

    /// Takes the operations done so far; operations per second.
    pub(crate) fn update(&self, ios: u64) -> f64 {
        let (since, before) = self.since.get();
        let seconds = since.elapsed().as_secs_f64();
        if seconds >= 0.5 || self.iops.get() == 0.0 {
            self.iops
                .set(rate(ios.saturating_sub(before), seconds.max(1e-3)));
        }
        if seconds >= 0.5 {
            self.since.set((Instant::now(), ios));
        }
        self.iops.get()
    }
}

/// `randread: 12.3k IOPS, 48.1 MiB/s, ETA 1 min 05 s`.
pub(crate) fn load_text(
    what: &str,
    iops: f64,
    block_bytes: usize,
    eta: Option<Duration>,
) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let bandwidth = bytes_text(iops * block_bytes as f64);
    let eta = eta.map_or("unknown".into(), duration_text);
    format!(
        "{what}: {} IOPS, {bandwidth}/s, ETA {eta}",
        count_text(iops)
    )
}

/// A time for people, to the second, rounded up.
pub(crate) fn duration_text(time: Duration) -> String {
    let seconds = time.as_millis().div_ceil(1000);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

/// The progress of one run among those that are left.
#[derive(Debug)]
pub(crate) struct RunProgress<'a> {
    progress: &'a Progress,
    what: String,
    block_bytes: usize,
    begun: Instant,
    left: Duration,
    speed: Speed,
}

impl<'a> RunProgress<'a> {
    /// `each` is how long a run takes.
    pub(crate) fn new(
        progress: &'a Progress,
        what: String,
        block_bytes: usize,
        each: Duration,
    ) -> Self {
        let runs = u32::try_from(progress.steps_left()).unwrap_or(u32::MAX);
        Self {
            progress,
            what,
            block_bytes,
            begun: Instant::now(),
            left: each.saturating_mul(runs),
            speed: Speed::new(),
        }
    }

    pub(crate) fn tick(&self, ios: u64) {
        let left = self.left.saturating_sub(self.begun.elapsed());
        let iops = self.speed.update(ios);
        self.progress
            .message(load_text(&self.what, iops, self.block_bytes, Some(left)));
        self.progress.is_shown();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_told_with_units() {
        let eta = Duration::from_millis(64_001);
        assert_eq!(
            load_text("randread", 12_300.0, 4096, Some(eta)),
            "randread: 12.3k IOPS, 48.0 MiB/s, ETA 1 min 05 s"
        );
        assert!(load_text("read", 0.0, 4096, None).ends_with("0 IOPS, 0 B/s, ETA unknown"));
        assert_eq!(duration_text(Duration::from_secs(7260)), "2 h 01 min");
        assert_eq!(duration_text(Duration::ZERO), "0 s");
    }

    #[test]
    fn the_speed_is_that_of_the_last_while() {
        let speed = Speed::new();
        std::thread::sleep(Duration::from_millis(5));
        assert!(speed.update(100) > 0.0);
        assert!(speed.update(100) > 0.0);
    }
}
