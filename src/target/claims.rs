//! Who uses a device in this process: one filesystem that may write, or several that only read, or
//! raw writers.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::FileId;

/// A device or file, however it was named when it was opened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Identity {
    /// A file: an image, or the socket of a vfio-user server; with the namespace.
    File(FileId, u32),
    /// A block device, by number.
    Block(u64),
    /// A PCI address or a controller of SPDK's, in words, with the namespace.
    Named(String, u32),
    /// A controller in memory, by its own address.
    Memory(usize),
}

/// What a [`Claim`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// A filesystem whose files may be written.
    Mount,
    /// A filesystem that is only read.
    MountReadOnly,
    /// Blocks that are written without a filesystem.
    RawWrite,
}

#[derive(Debug, Default)]
struct Counts {
    mounts: usize,
    read_only_mounts: usize,
    raw_writers: usize,
}

impl Counts {
    fn of(&mut self, what: Use) -> &mut usize {
        match what {
            Use::Mount => &mut self.mounts,
            Use::MountReadOnly => &mut self.read_only_mounts,
            Use::RawWrite => &mut self.raw_writers,
        }
    }
}

static CLAIMS: LazyLock<Mutex<HashMap<Identity, Counts>>> = LazyLock::new(Mutex::default);

fn claims() -> MutexGuard<'static, HashMap<Identity, Counts>> {
    CLAIMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A use of a device, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    identity: Identity,
    what: Use,
}

impl Claim {
    /// Claims the device.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when it is used otherwise in this process.
    pub(crate) fn new(identity: &Identity, what: Use) -> Result<Self> {
        let mut claims = claims();
        let counts = claims.entry(identity.clone()).or_default();
        let mounted =
            counts.mounts > 0 || counts.read_only_mounts > 0 && what != Use::MountReadOnly;
        let refused = match what {
            _ if mounted => Some(
                "this process has a filesystem on the device open already: use it (a Volume can be cloned), \
                 or close it first",
            ),
            Use::Mount | Use::MountReadOnly if counts.raw_writers > 0 => {
                Some("this process has the device open for raw writes: close that first (RawIo)")
            }
            _ => None,
        };
        if let Some(why) = refused {
            return Err(Error::new(ErrorKind::Busy, why));
        }
        *counts.of(what) += 1;
        Ok(Self {
            identity: identity.clone(),
            what,
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = claims();
        let Some(counts) = claims.get_mut(&self.identity) else {
            return;
        };
        *counts.of(self.what) -= 1;
        if counts.mounts + counts.read_only_mounts + counts.raw_writers == 0 {
            claims.remove(&self.identity);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_writes_excludes_the_others() {
        let device = Identity::Named("a device of this test".to_owned(), 1);
        let claim = |what| Claim::new(&device, what);
        let busy = |what| claim(what).unwrap_err().kind() == ErrorKind::Busy;
        let mount = claim(Use::Mount).unwrap();
        assert!(busy(Use::Mount) && busy(Use::MountReadOnly) && busy(Use::RawWrite));
        let other = Identity::Named("a device of this test".to_owned(), 2);
        Claim::new(&other, Use::Mount).unwrap();
        drop(mount);
        let readers = [(); 2].map(|()| claim(Use::MountReadOnly).unwrap());
        assert!(busy(Use::Mount) && busy(Use::RawWrite));
        drop(readers);
        let writers = [(); 2].map(|()| claim(Use::RawWrite).unwrap());
        assert!(busy(Use::Mount) && busy(Use::MountReadOnly));
        drop(writers);
        claim(Use::Mount).unwrap();
        assert!(!claims().contains_key(&device), "nothing is left");
    }
}
