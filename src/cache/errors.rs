//! Writeback errors: recorded per file, and reported once to each handle that syncs (as errseq_t).

use std::sync::{Mutex, PoisonError};

use crate::error::{Error, ErrorKind};

/// What has failed since the file was opened first.
#[derive(Debug, Default)]
pub(super) struct Errors(Mutex<ErrorLog>);

#[derive(Debug, Default)]
struct ErrorLog {
    count: u64,
    last: Option<(ErrorKind, String, u64)>,
}

/// Position of a handle in the file's error log. Failures before its creation are not reported to
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ErrorCursor(u64);

impl Errors {
    pub(super) fn cursor(&self) -> ErrorCursor {
        ErrorCursor(self.0.lock().unwrap_or_else(PoisonError::into_inner).count)
    }

    pub(super) fn note(&self, error: &Error, pos: u64) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.count += 1;
        log.last = Some((error.kind(), error.to_string(), pos));
    }

    /// The last failure, where there was one that this cursor has not heard of.
    pub(super) fn check(&self, cursor: &mut ErrorCursor) -> Option<Error> {
        let log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cursor.0 == log.count {
            return None;
        }
        cursor.0 = log.count;
        let (kind, what, pos) = log.last.as_ref()?;
        Some(Error::new(*kind, format!("writing back failed: {what}")).at_offset(*pos))
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hears_of_a_failure_once() {
        let errors = Errors::default();
        let (mut a, mut b) = (errors.cursor(), errors.cursor());
        assert!(errors.check(&mut a).is_none());
        errors.note(&Error::new(ErrorKind::Io, "bad"), 4096);
        assert_eq!(errors.check(&mut a).unwrap().kind(), ErrorKind::Io);
        assert!(errors.check(&mut a).is_none());
        assert!(errors.check(&mut b).is_some());
        assert!(errors.check(&mut errors.cursor()).is_none());
    }
}
