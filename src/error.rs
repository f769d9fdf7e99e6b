//! The one error type: a kind to match on, the context a person needs, and the source.
//!
//! Layer 0. The hot path does not build these: it carries [`crate::block::Status`], a small `Copy`
//! value, and turns it into an [`Error`] where an operation is handed to the caller.

use std::error::Error as StdError;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What went wrong, for programs to match on.
///
/// ```
/// use xtent::{Error, ErrorKind};
/// fn may_be_tried_again(error: &Error) -> bool {
///     matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Timeout)
/// }
/// # let _ = may_be_tried_again;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such file, directory entry or target.
    NotFound,
    /// A path component that must be a directory is not one.
    NotADirectory,
    /// A file operation met a directory.
    IsADirectory,
    /// Too many symbolic links while walking a path.
    TooManyLinks,
    /// A name or a path is longer than the format allows.
    NameTooLong,
    /// The caller's arguments are wrong in a way of their own; the message says how.
    InvalidInput,
    /// Offset, length or memory is not aligned as direct I/O demands; the message names the
    /// alignment.
    Misaligned,
    /// A write would need what cannot be done here: past the end, into a hole, into shared blocks,
    /// in a file whose privileges (set-user-ID, capabilities) it must take away and cannot.
    NotOverwrite,
    /// The target, volume or file may only be read.
    ReadOnly,
    /// A feature of the disk, device or host that is not supported, by name.
    Unsupported,
    /// There is no XFS filesystem; the message says what there is instead.
    NotXfs,
    /// The file ends before all bytes that were asked for.
    UnexpectedEof,
    /// The log holds changes that must be replayed first.
    NeedsRecovery,
    /// In use: mounted, locked by another process, attached elsewhere.
    Busy,
    /// Permissions do not allow it: the host's, or the file's flags (immutable, append-only).
    PermissionDenied,
    /// The filesystem is corrupt: its structures are inconsistent.
    Corrupt,
    /// The device reported an error for a command.
    Io,
    /// A command or a controller did not answer within its deadline, and recovery did not help.
    Timeout,
    /// The device is gone or failed for good.
    DeviceGone,
    /// Memory (hugepages, arenas) or what a controller has of something (queue pairs) is exhausted.
    OutOfMemory,
    /// No space is left on the filesystem.
    NoSpace,
    /// As many operations are in flight as there is room for: poll, then try again.
    WouldBlock,
    /// A system call failed; the source says how.
    System,
}

/// An error with its context. One pointer wide, so that `Result`s stay small.
///
/// ```no_run
/// use xtent::{ErrorKind, volume::Volume};
/// match Volume::open("image:disk.img") {
///     Err(error) if error.kind() == ErrorKind::NotFound => println!("no image: {error}"),
///     Err(error) => println!("{error} (status {:?})", error.status()),
///     Ok(_) => {}
/// }
/// ```
pub struct Error(Box<ErrorInner>);

struct ErrorInner {
    kind: ErrorKind,
    detail: String,
    operation: Option<&'static str>,
    path: Option<Vec<u8>>,
    offset_bytes: Option<u64>,
    bytes_done: Option<u64>,
    status: Option<(u8, u8)>,
    device: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A new error. `detail` is a sentence without a full stop that names the fault and, for bad
    /// input, the remedy.
    #[cold]
    #[doc(hidden)]
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self(Box::new(ErrorInner {
            kind,
            detail: detail.into(),
            operation: None,
            path: None,
            offset_bytes: None,
            bytes_done: None,
            status: None,
            device: None,
            source: None,
        }))
    }

    /// A failed system call: `what` names it and its object, `source` is its errno.
    #[cold]
    #[doc(hidden)]
    pub fn system(what: impl Into<String>, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
            std::io::ErrorKind::OutOfMemory => ErrorKind::OutOfMemory,
            _ => ErrorKind::System,
        };
        Self::new(kind, what).because(source)
    }

    /// Adds the operation's name (`read`, `open`), unless one is set already.
    #[must_use]
    #[doc(hidden)]
    pub fn during(mut self, operation: &'static str) -> Self {
        self.0.operation.get_or_insert(operation);
        self
    }

    /// Adds the path inside the volume or on the host, unless one is set already.
    #[must_use]
    #[doc(hidden)]
    pub fn at_path(mut self, path: impl AsRef<[u8]>) -> Self {
        self.0.path.get_or_insert_with(|| path.as_ref().to_vec());
        self
    }

    /// Adds the byte offset in the file or on the device, unless one is set already.
    #[must_use]
    #[doc(hidden)]
    pub fn at_offset(mut self, offset_bytes: u64) -> Self {
        self.0.offset_bytes.get_or_insert(offset_bytes);
        self
    }

    /// Adds the device or target, unless one is set already.
    #[must_use]
    #[doc(hidden)]
    pub fn on_device(mut self, device: impl Into<String>) -> Self {
        self.0.device.get_or_insert_with(|| device.into());
        self
    }

    /// Sets how many bytes were done before the failure.
    #[must_use]
    pub(crate) fn with_bytes_done(mut self, bytes: usize) -> Self {
        self.0.bytes_done = Some(bytes as u64);
        self
    }

    /// Adds bytes that were done before those that the error counts already.
    #[must_use]
    pub(crate) fn after_bytes(mut self, bytes: usize) -> Self {
        let counted = self.0.bytes_done.unwrap_or(0);
        self.0.bytes_done = Some(counted.saturating_add(bytes as u64));
        self
    }

    /// Adds the status of the command that failed: status code type, status code.
    #[must_use]
    pub(crate) fn with_status(mut self, sct: u8, sc: u8) -> Self {
        self.0.status = Some((sct, sc));
        self
    }

    /// Adds the cause.
    #[must_use]
    #[doc(hidden)]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The detail alone, without context.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The path that was involved, in the volume or on the host.
    pub fn path(&self) -> Option<&Path> {
        let path = self.0.path.as_deref()?;
        Some(Path::new(OsStr::from_bytes(path)))
    }

    /// The operation that failed, such as `read` or `open`.
    pub fn operation(&self) -> Option<&str> {
        self.0.operation
    }

    /// The device or target that was involved.
    pub fn device(&self) -> Option<&str> {
        self.0.device.as_deref()
    }

    /// The byte offset in the file or on the device.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset_bytes
    }

    /// Status code type and status code of the NVMe command that failed (NVMe base specification,
    /// section 4.2.3).
    pub fn status(&self) -> Option<(u8, u8)> {
        self.0.status
    }

    /// The errno of the system call that failed.
    pub fn raw_os_error(&self) -> Option<i32> {
        let source = self.0.source.as_deref()?;
        source.downcast_ref::<std::io::Error>()?.raw_os_error()
    }

    /// The bytes that a read or a write did before it failed, contiguous from its offset. At least
    /// these: what one command of the device did in part is not counted. `None` where the operation
    /// did not begin, or has no bytes.
    pub fn bytes_done(&self) -> Option<u64> {
        self.0.bytes_done
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        let mut context = String::new();
        if let Some(operation) = inner.operation {
            context.push_str(operation);
        }
        if let Some(path) = &inner.path {
            push_word(&mut context, &path.escape_ascii().to_string());
        }
        if let Some(offset) = inner.offset_bytes {
            push_word(&mut context, &format!("at byte {offset}"));
        }
        if let Some(device) = &inner.device {
            push_word(&mut context, &format!("on {device}"));
        }
        if let Some(done @ 1..) = inner.bytes_done {
            push_word(&mut context, &format!("after {done} bytes"));
        }
        if !context.is_empty() {
            write!(f, "{context}: ")?;
        }
        f.write_str(&inner.detail)?;
        if let Some(source) = &inner.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

fn push_word(text: &mut String, word: &str) {
    if !text.is_empty() {
        text.push(' ');
    }
    text.push_str(word);
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl StdError for Error {
    /// What lies below the cause: the cause itself is part of the message, as in
    /// [`std::io::Error`].
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref()?.source()
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            ErrorKind::NotFound => Io::NotFound,
            ErrorKind::NotADirectory => Io::NotADirectory,
            ErrorKind::IsADirectory => Io::IsADirectory,
            ErrorKind::InvalidInput | ErrorKind::Misaligned => Io::InvalidInput,
            ErrorKind::ReadOnly => Io::ReadOnlyFilesystem,
            ErrorKind::Unsupported | ErrorKind::NotOverwrite => Io::Unsupported,
            ErrorKind::UnexpectedEof => Io::UnexpectedEof,
            ErrorKind::Busy => Io::ResourceBusy,
            ErrorKind::PermissionDenied => Io::PermissionDenied,
            ErrorKind::Corrupt | ErrorKind::NotXfs => Io::InvalidData,
            ErrorKind::Timeout => Io::TimedOut,
            ErrorKind::OutOfMemory => Io::OutOfMemory,
            ErrorKind::NoSpace => Io::StorageFull,
            ErrorKind::WouldBlock => Io::WouldBlock,
            _ => Io::Other,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_gives_operation_path_offset_device_and_cause() {
        let error = Error::new(ErrorKind::Io, "the device reported an error")
            .during("read")
            .at_path(b"/a\xffb")
            .at_offset(4096)
            .on_device("ram:1M")
            .because("media error");
        assert_eq!(
            error.to_string(),
            "read /a\\xffb at byte 4096 on ram:1M: the device reported an error: media error"
        );
    }

    #[test]
    fn bytes_done_add_up_and_are_shown() {
        let error = Error::new(ErrorKind::Io, "media error").during("read");
        assert_eq!(error.bytes_done(), None);
        let error = error.with_bytes_done(0);
        assert_eq!(error.to_string(), "read: media error");
        let error = error.after_bytes(512).after_bytes(4096);
        assert_eq!(error.bytes_done(), Some(4608));
        assert_eq!(error.to_string(), "read after 4608 bytes: media error");
    }

    #[test]
    fn a_full_queue_is_would_block_for_std_too() {
        let error = std::io::Error::from(Error::new(ErrorKind::WouldBlock, "full"));
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn inner_context_is_not_overwritten_by_outer() {
        let error = Error::new(ErrorKind::Corrupt, "x")
            .during("parse")
            .during("open");
        assert!(error.to_string().starts_with("parse: "));
    }
}
