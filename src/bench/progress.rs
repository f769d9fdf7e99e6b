//! Progress of long work, on stderr, when that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar, or nothing where nobody looks.
#[derive(Debug, Clone)]
pub(crate) struct Progress(ProgressBar);

fn styled(bar: ProgressBar, template: &str) -> Progress {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    Progress(bar)
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
        !self.0.is_hidden()
    }

    pub(crate) fn message(&self, text: impl Into<String>) {
        self.0.set_message(text.into());
    }

    /// One line on stderr that stays.
    pub(crate) fn note(&self, text: &str) {
        self.0.suspend(|| eprintln!("xtent: note: {text}"));
    }

    /// Does something that writes to the terminal, with the bar out of the way.
    pub(crate) fn aside(&self, write: impl FnOnce()) {
        self.0.suspend(write);
    }

    pub(crate) fn add(&self, count: u64) {
        self.0.inc(count);
    }

    pub(crate) fn set(&self, position: u64) {
        self.0.set_position(position);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
