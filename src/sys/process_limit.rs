//! Limits of this process, as errors name them and as they are asked for beforehand.

use std::io;

use crate::error::{Error, ErrorKind};

/// The error of a system call that a limit of the process may have failed: names the limit where
/// the errno is one that limits cause. `ulimit -l`, `-n`, `-v`, `-u` and `-f` are those of the
/// shell.
#[cold]
pub fn limit_error(what: impl Into<String>, source: io::Error, limit: ProcessLimit) -> Error {
    let mut what = what.into();
    let Some(words) = limit.explain(&source) else {
        return Error::system(what, source);
    };
    what.push_str(": ");
    what.push_str(&words);
    Error::new(ErrorKind::OutOfMemory, what).because(source)
}

/// What a system call takes that a process can run out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessLimit {
    /// A thread: `RLIMIT_NPROC`, `pids.max` of a control group.
    Threads,
    /// Address space: `RLIMIT_AS`.
    Addresses,
    /// Locked memory, of which io_uring counts rings and registered buffers (before 5.12 always):
    /// `RLIMIT_MEMLOCK`; and descriptors, `RLIMIT_NOFILE`.
    Ring,
}

impl ProcessLimit {
    /// What to do about an error that this limit causes; `None` for one that it does not cause.
    pub fn explain(self, error: &io::Error) -> Option<String> {
        match (self, error.raw_os_error()?) {
            (_, libc::EMFILE) => Some(format!(
                "this process has all the descriptors that it may have ({}): raise `ulimit -n`",
                soft(libc::RLIMIT_NOFILE)
            )),
            (_, libc::EFBIG) => Some(format!(
                "this process may not make files of that size: raise `ulimit -f` ({} KiB now)",
                kib(soft_value(libc::RLIMIT_FSIZE))
            )),
            (_, libc::ENFILE) => {
                Some("the system has no descriptors left (sysctl fs.file-max)".into())
            }
            (Self::Threads, libc::EAGAIN) => Some(format!(
                "no more threads are allowed: raise `ulimit -u` ({}) or pids.max of the control group \
                 (TasksMax of a systemd unit)",
                soft(libc::RLIMIT_NPROC)
            )),
            (Self::Ring, libc::ENOMEM) => Some(format!(
                "the ring and its buffers do not fit into the memory that may be locked: raise \
                 `ulimit -l` ({} KiB now), or use a smaller queue depth",
                kib(soft_value(libc::RLIMIT_MEMLOCK))
            )),
            (_, libc::ENOMEM) => Some(match soft_value(libc::RLIMIT_AS) {
                libc::RLIM_INFINITY => "memory is exhausted".into(),
                limit => format!(
                    "memory is exhausted, or the address space is limited: raise `ulimit -v` ({} KiB now)",
                    kib(limit)
                ),
            }),
            _ => None,
        }
    }
}

fn kib(bytes: libc::rlim_t) -> String {
    match bytes {
        libc::RLIM_INFINITY => "unlimited".into(),
        bytes => (bytes / 1024).to_string(),
    }
}

fn soft(resource: libc::__rlimit_resource_t) -> String {
    match soft_value(resource) {
        libc::RLIM_INFINITY => "unlimited now".into(),
        value => format!("{value} now"),
    }
}

fn soft_value(resource: libc::__rlimit_resource_t) -> libc::rlim_t {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a place for the answer that outlives the call.
    match unsafe { libc::getrlimit(resource, &raw mut limit) } {
        0 => limit.rlim_cur,
        _ => libc::RLIM_INFINITY,
    }
}

/// Bytes of address space that this process may still map by `RLIMIT_AS`; `None` without a limit.
pub fn address_space_left() -> Option<u64> {
    let limit = soft_value(libc::RLIMIT_AS);
    if limit == libc::RLIM_INFINITY {
        return None;
    }
    // The first field of statm: pages mapped (proc_pid_statm(5)).
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().next()?.parse().ok()?;
    // SAFETY: a plain call.
    let page_bytes = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    Some(limit.saturating_sub(pages.saturating_mul(page_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_limit_that_caused_them() {
        for (limit, errno, word) in [
            (ProcessLimit::Threads, libc::EAGAIN, "ulimit -u"),
            (ProcessLimit::Ring, libc::ENOMEM, "ulimit -l"),
            (ProcessLimit::Ring, libc::EMFILE, "ulimit -n"),
            (ProcessLimit::Addresses, libc::ENOMEM, "memory is exhausted"),
        ] {
            let error = limit_error("x", io::Error::from_raw_os_error(errno), limit);
            assert!(error.to_string().contains(word), "{error}");
            assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        }
        let other = io::Error::from_raw_os_error(libc::EPERM);
        let error = limit_error("x", other, ProcessLimit::Ring);
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }
}
