//! Which CPUs a thread may run on.

use std::io;

/// Lets the calling thread, and threads that it starts from now on, run on these CPUs only.
///
/// # Errors
/// `InvalidInput` where none of them is online and allowed by the process's cpuset.
pub fn pin_thread(cpus: &[usize]) -> io::Result<()> {
    let words = cpus.iter().max().map_or(1, |cpu| cpu / 64 + 1);
    let mut mask = vec![0_u64; words];
    for cpu in cpus {
        mask[cpu / 64] |= 1 << (cpu % 64);
    }
    let bytes = size_of_val(mask.as_slice());
    // SAFETY: the kernel reads `bytes` bytes from the start of `mask`, which has as many, and keeps
    // nothing of it; thread 0 is the calling one.
    let result = unsafe { libc::sched_setaffinity(0, bytes, mask.as_ptr().cast()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_runs_where_it_may() {
        let pinned = std::thread::spawn(|| {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let allowed = |status: &str| {
                let line = status
                    .lines()
                    .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
                line.map(|list| list.trim().to_owned())
            };
            let first = allowed(&status).unwrap();
            let first = first.split([',', '-']).next().unwrap();
            pin_thread(&[first.parse().unwrap()]).unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            assert_eq!(allowed(&status).as_deref(), Some(first));
            let none = pin_thread(&[8000]).unwrap_err();
            assert_eq!(none.kind(), io::ErrorKind::InvalidInput, "{none}");
        });
        pinned.join().unwrap();
    }
}
