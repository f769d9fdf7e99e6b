//! Progress of long work, on stderr, when that is a terminal.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::terminal::escape;

/// How long work must take before its progress is shown: short commands print their results only.
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

    pub(crate) fn add(&self, count: u64) {
        self.is_shown();
        self.bar.inc(count);
    }

    pub(crate) fn set(&self, position: u64) {
        self.is_shown();
        self.bar.set_position(position);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
