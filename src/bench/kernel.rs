//! The kernel under the same load: `O_DIRECT` by `pread`/`pwrite` at depth 1 and by io_uring above;
//! or `pread`/`pwrite` through its page cache.

use std::fs::{File, FileTimes, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use xtent::internals::sys::{ProcessLimit, Slots, Uring, UringOp, limit_error};
use xtent::{Error, ErrorKind, Result};

use super::workload::Workload;
use super::{Engine, LoadOp, SyncKind};

/// A file of a mounted filesystem.
#[derive(Debug)]
pub(crate) enum KernelEngine {
    /// fio's `psync`: one system call an operation.
    Psync {
        file: File,
        slots: Slots,
        buffered: bool,
        ended: Option<std::io::Result<usize>>,
    },
    /// fio's `io_uring`.
    Uring(Box<Uring>),
}

fn failed(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => {
            Error::system(what, error)
        }
        _ => Error::new(ErrorKind::Io, what).because(error),
    }
}

/// Opens the file of a workload.
fn open(path: &Path, workload: &Workload) -> Result<File> {
    let direct = if workload.buffered { 0 } else { libc::O_DIRECT };
    OpenOptions::new()
        .read(true)
        .write(workload.rw.writes())
        .custom_flags(direct | workload.sync.open_flag())
        .open(path)
        .map_err(|e| {
            failed("the kernel cannot open the file")(e).at_path(path.as_os_str().as_bytes())
        })
}

impl KernelEngine {
    pub(crate) fn new(path: &Path, workload: &Workload) -> Result<Self> {
        let (depth, block_bytes) = (workload.iodepth, workload.block_bytes);
        let file = open(path, workload)?;
        if depth == 1 {
            let slots = Slots::new(1, block_bytes).map_err(failed("cannot reserve memory"))?;
            return Ok(Self::Psync {
                file,
                slots,
                buffered: workload.buffered,
                ended: None,
            });
        }
        let entries = u32::try_from(depth).unwrap_or(u32::MAX);
        let ring = Uring::new(file, entries, block_bytes).map_err(|e| {
            limit_error("cannot set up the kernel's io_uring", e, ProcessLimit::Ring)
        })?;
        Ok(Self::Uring(Box::new(ring)))
    }

    fn file(&self) -> &File {
        match self {
            Self::Psync { file, .. } => file,
            Self::Uring(ring) => ring.file(),
        }
    }

    /// The interface in use, for reports.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Psync { buffered: true, .. } => "psync (pread, pwrite), page cache".into(),
            Self::Psync { .. } => "psync (pread, pwrite), O_DIRECT".into(),
            Self::Uring(ring) => format!("io_uring, O_DIRECT, {}", ring.settings()),
        }
    }
}

impl Engine for KernelEngine {
    fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        match self {
            Self::Psync { slots, .. } => slots.slot_mut(slot),
            Self::Uring(ring) => ring.slot_mut(slot).unwrap_or(&mut []),
        }
    }

    #[inline]
    fn submit(&mut self, slot: usize, op: LoadOp, offset_bytes: u64) -> Result<()> {
        match self {
            Self::Psync {
                file, slots, ended, ..
            } => {
                *ended = Some(match op {
                    LoadOp::Read => file.read_at(slots.slot_mut(slot), offset_bytes),
                    LoadOp::Write => file.write_at(slots.slot(slot), offset_bytes),
                });
                Ok(())
            }
            Self::Uring(ring) => {
                let op = match op {
                    LoadOp::Read => UringOp::Read,
                    LoadOp::Write => UringOp::Write,
                };
                ring.push(slot, op, offset_bytes)
                    .map_err(failed("io_uring took no operation"))
            }
        }
    }

    #[inline]
    fn poll(&mut self, done: &mut impl FnMut(usize, Result<usize>)) -> Result<()> {
        match self {
            Self::Psync { ended, .. } => {
                if let Some(result) = ended.take() {
                    done(0, result.map_err(failed("the kernel reported an error")));
                }
                Ok(())
            }
            Self::Uring(ring) => {
                match ring.enter() {
                    Err(e) if e.kind() != std::io::ErrorKind::Interrupted => {
                        return Err(failed("io_uring_enter failed")(e));
                    }
                    _ => {}
                }
                ring.reap(|slot, result| {
                    let bytes = result.map(|n| n as usize);
                    done(slot, bytes.map_err(failed("the kernel reported an error")));
                });
                Ok(())
            }
        }
    }

    fn sync(&mut self, kind: SyncKind) -> Result<()> {
        match kind {
            SyncKind::Data => self.file().sync_data().map_err(failed("fdatasync failed")),
            SyncKind::All => self.file().sync_all().map_err(failed("fsync failed")),
        }
    }

    fn touch(&mut self) -> Result<()> {
        let times = FileTimes::new().set_modified(SystemTime::now());
        self.file()
            .set_times(times)
            .map_err(failed("futimens failed"))
    }
}
