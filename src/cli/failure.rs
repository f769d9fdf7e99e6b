//! Failures, as a line on stderr and an exit status.

use std::io::{self, Write};
use std::process::ExitCode;

use xtent::internals::sys::ProcessLimit;
use xtent::{Error, ErrorKind};

use crate::bench::terminal;

pub(super) const OPERATION: u8 = 1;
pub(super) const USAGE: u8 = 2;
pub(super) const TARGET: u8 = 3;
pub(super) const CORRUPT: u8 = 4;
pub(super) const DEVICE: u8 = 5;
const BROKEN_PIPE: u8 = 141;

/// Why a command ends without success.
#[derive(Debug)]
pub(super) struct Failure {
    status: u8,
    /// `None` when the message was printed already, or standard error has no reader.
    text: Option<String>,
}

impl Failure {
    /// A failure with a sentence of its own.
    pub(super) fn new(status: u8, text: impl Into<String>) -> Self {
        Self {
            status,
            text: Some(text.into()),
        }
    }

    /// Words of the command line that are wrong.
    pub(super) fn usage(text: impl Into<String>) -> Self {
        Self::new(USAGE, text)
    }

    /// What was said already.
    pub(super) fn silent(status: u8) -> Self {
        Self { status, text: None }
    }

    /// A target that cannot be opened, though it was named as one is.
    pub(super) fn target(error: Error) -> Self {
        let status = match status_of(&error) {
            OPERATION | USAGE => TARGET,
            other => other,
        };
        Self::new(status, error.to_string())
    }

    /// A host's file that cannot be worked with.
    pub(super) fn local(what: &str, path: &std::path::Path, error: io::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(error) => error.into(),
            Err(error) => {
                let why = explained(&error);
                Self::new(OPERATION, format!("{what} {}: {why}", path.display()))
            }
        }
    }

    /// Says it, unless interrupted or piped into nowhere; the status for the process.
    pub(super) fn report(self) -> ExitCode {
        if let Some(signal) = xtent::internals::sys::interrupted() {
            complain("interrupted");
            let status = u8::try_from(signal).map_or(OPERATION, |signal| 128 + signal);
            return ExitCode::from(status);
        }
        if let Some(text) = &self.text {
            complain(text);
        }
        ExitCode::from(self.status)
    }

    /// Says it now, also after an interruption, and not again.
    pub(super) fn told(self) -> Self {
        if let Some(text) = &self.text {
            complain(text);
        }
        Self::silent(self.status)
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> u8 {
        self.status
    }

    /// The text, if there is something left to say.
    pub(super) fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }
}

/// Prints one line on stderr: an error's own text may have several. Names of files, labels and what
/// devices and servers report is in it: control characters are escaped.
pub(super) fn complain(text: &str) {
    let text = text.trim().replace('\n', "; ");
    // A closed standard error is no reason to panic, as eprintln! does.
    let _ = writeln!(io::stderr(), "xtent: {}", terminal::escape(&text));
}

fn status_of(error: &Error) -> u8 {
    match error.kind() {
        ErrorKind::InvalidInput | ErrorKind::Misaligned => USAGE,
        ErrorKind::Unsupported | ErrorKind::NotXfs | ErrorKind::NeedsRecovery | ErrorKind::Busy => {
            TARGET
        }
        ErrorKind::Corrupt => CORRUPT,
        ErrorKind::Io | ErrorKind::Timeout | ErrorKind::DeviceGone => DEVICE,
        _ => OPERATION,
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(status_of(&error), error.to_string())
    }
}

/// The error, and what to do where a limit of the process is the reason.
fn explained(error: &io::Error) -> String {
    match ProcessLimit::Addresses.explain(error) {
        Some(words) => format!("{error}: {words}"),
        None => error.to_string(),
    }
}

/// From writing to standard output, or from reading a volume by `std::io`.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(BROKEN_PIPE);
        }
        match error.downcast::<Error>() {
            Ok(error) => error.into(),
            Err(error) => {
                let why = explained(&error);
                Self::new(OPERATION, format!("cannot write the output: {why}"))
            }
        }
    }
}

/// Failures of a command that goes on with the next file: each is said at once, the first one's
/// status stays.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// Of the first one.
    status: Option<u8>,
    is_silent: bool,
}

impl Failures {
    /// Says nothing about files that an operation fails on. Errors of the device and a corrupt
    /// filesystem are reported all the same.
    pub(super) fn silent() -> Self {
        Self {
            is_silent: true,
            ..Self::default()
        }
    }

    /// Prints it and continues, unless that is pointless (no reader, or interrupted by the user).
    pub(super) fn note(&mut self, failure: impl Into<Failure>) -> Result<(), Failure> {
        let failure = failure.into();
        if failure.status == BROKEN_PIPE || xtent::internals::sys::interrupted().is_some() {
            return Err(failure);
        }
        let is_said = !self.is_silent || failure.status != OPERATION;
        if let Some(text) = failure.text.filter(|_| is_said) {
            complain(&text);
        }
        self.status.get_or_insert(failure.status);
        Ok(())
    }

    /// The value, if there is one; otherwise the error is noted.
    pub(super) fn value_of<T>(
        &mut self,
        result: Result<T, impl Into<Failure>>,
    ) -> Result<Option<T>, Failure> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(failure) => self.note(failure).map(|()| None),
        }
    }

    /// What the command comes to.
    pub(super) fn result(self) -> Result<(), Failure> {
        match self.status {
            None => Ok(()),
            Some(status) => Err(Failure::silent(status)),
        }
    }
}

/// Ends the command when the user asked for it.
pub(super) fn check_interrupted() -> Result<(), Failure> {
    match xtent::internals::sys::interrupted() {
        Some(_) => Err(Failure::silent(OPERATION)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_their_status_also_through_io_errors() {
        for (kind, in_volume, at_opening) in [
            (ErrorKind::NotFound, 1, 3),
            (ErrorKind::InvalidInput, 2, 3),
            (ErrorKind::Busy, 3, 3),
            (ErrorKind::NeedsRecovery, 3, 3),
            (ErrorKind::Corrupt, 4, 4),
            (ErrorKind::Timeout, 5, 5),
            (ErrorKind::PermissionDenied, 1, 3),
        ] {
            let error = || Error::new(kind, "x");
            assert_eq!(Failure::from(error()).status(), in_volume, "{kind:?}");
            assert_eq!(Failure::target(error()).status(), at_opening, "{kind:?}");
            let wrapped = Failure::from(io::Error::from(error()));
            assert_eq!(wrapped.status(), in_volume, "{kind:?}");
        }
        assert!(
            Failure::from(io::Error::from(io::ErrorKind::BrokenPipe))
                .text()
                .is_none()
        );
    }
}
