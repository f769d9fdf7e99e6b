//! Runs the jobs of a workload, each on a thread of its own, and adds up what they measured.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use xtent::internals::sys::{pin_thread, spawn_scoped};
use xtent::{Error, ErrorKind, Result};

use super::Engine;
use super::hist_log::LogWindow;
use super::job::BenchJob;
use super::outcome::Outcome;
use super::workload::Workload;

/// A callback with the number of operations done so far.
pub(crate) type Tick<'a> = &'a dyn Fn(u64);

/// A callback with each interval of the histogram log when it ends.
pub(crate) type LogCallback<'a> = &'a dyn Fn(&LogWindow);

/// Runs the workload, each job on a thread of its own with the engine that `make` gives it there.
pub(crate) fn run<E: Engine>(
    workload: &Workload,
    tick: Tick<'_>,
    make: impl Fn(usize) -> Result<E> + Sync,
) -> Result<Outcome> {
    run_logged(workload, tick, &|_| {}, make)
}

/// As [`run`], with a histogram log where the workload has an interval for it.
pub(crate) fn run_logged<E: Engine>(
    workload: &Workload,
    tick: Tick<'_>,
    log: LogCallback<'_>,
    make: impl Fn(usize) -> Result<E> + Sync,
) -> Result<Outcome> {
    workload.check()?;
    let jobs = workload.numjobs;
    let counters: Vec<AtomicU64> = (0..jobs).map(|_| AtomicU64::new(0)).collect();
    let start = Start::new(jobs);
    let (sender, windows) = mpsc::channel::<LogWindow>();
    let outcomes = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs)
            .map(|job| {
                let (make, start, ios) = (&make, &start, &counters[job]);
                let windows = workload.measure.log.map(|_| sender.clone());
                spawn_scoped(scope, format!("job {job}"), move || {
                    let place = start.enter();
                    pin(workload)?;
                    let engine = make(job)?;
                    let job = BenchJob::new(workload, engine, job, ios, windows)?;
                    // Another job has no engine: its error is the answer.
                    if !place.wait() {
                        return Ok(Outcome::default());
                    }
                    job.run()
                })
                // The jobs that wait for this one end without it.
                .inspect_err(|_| start.give_up())
            })
            .collect::<Result<_>>()?;
        while !threads
            .iter()
            .all(std::thread::ScopedJoinHandle::is_finished)
        {
            std::thread::park_timeout(Duration::from_millis(20));
            tick(counters.iter().map(|c| c.load(Ordering::Relaxed)).sum());
            windows.try_iter().for_each(|window| log(&window));
        }
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect::<Result<Vec<Outcome>>>()
    })?;
    windows.try_iter().for_each(|window| log(&window));
    let mut total = Outcome::new(&workload.measure);
    outcomes.iter().for_each(|outcome| total.join(outcome));
    total.cpus = outcomes.first().map_or(total.cpus, |first| first.cpus);
    if outcomes.len() > 1 {
        total.jobs = outcomes;
    }
    Ok(total)
}

/// Binds the calling thread to the CPUs of `--cpus-allowed`.
fn pin(workload: &Workload) -> Result<()> {
    let cpus = &workload.measure.cpus;
    if cpus.is_empty() {
        return Ok(());
    }
    pin_thread(cpus).map_err(|error| {
        let text = format!("--cpus-allowed: none of the CPUs {cpus:?} can be used");
        match error.kind() {
            std::io::ErrorKind::InvalidInput => Error::new(ErrorKind::InvalidInput, text),
            _ => Error::system(text, error),
        }
    })
}

/// A barrier: all jobs begin together, or none when one has no thread or no engine.
#[derive(Debug)]
struct Start {
    /// Jobs that are not ready yet; `None` once one of them failed.
    missing: Mutex<Option<usize>>,
    changed: Condvar,
}

impl Start {
    fn new(jobs: usize) -> Self {
        Self {
            missing: Mutex::new(Some(jobs)),
            changed: Condvar::new(),
        }
    }

    /// The place of one job: dropped without [`StartPlace::wait`], by an error or a panic, it ends
    /// all.
    fn enter(&self) -> StartPlace<'_> {
        StartPlace(Some(self))
    }

    fn give_up(&self) {
        self.set(|_| None);
    }

    fn set(&self, change: impl FnOnce(usize) -> Option<usize>) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        *missing = missing.and_then(change);
        self.changed.notify_all();
    }
}

struct StartPlace<'a>(Option<&'a Start>);

impl StartPlace<'_> {
    /// Waits until every job is ready; false when one failed.
    fn wait(mut self) -> bool {
        let Some(start) = self.0.take() else {
            return false;
        };
        start.set(|missing| missing.checked_sub(1));
        let missing = start.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = |missing: &mut Option<usize>| missing.is_some_and(|n| n > 0);
        let missing = start.changed.wait_while(missing, ready);
        missing.unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl Drop for StartPlace<'_> {
    fn drop(&mut self) {
        if let Some(start) = self.0 {
            start.give_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::kernel::KernelEngine;
    use crate::bench::workload::Rw;
    use crate::bench::{LoadOp, SyncKind};
    use std::os::unix::fs::FileExt;

    fn workload(rw: Rw, iodepth: usize) -> Workload {
        Workload {
            name: "test".into(),
            rw,
            iodepth,
            numjobs: 2,
            size_bytes: 1 << 20,
            verify: true,
            seed: 9,
            ..Workload::default()
        }
    }

    fn kernel_run(path: &std::path::Path, workload: &Workload) -> Result<Outcome> {
        run(workload, &|_| {}, |_| KernelEngine::new(path, workload))
    }

    #[test]
    fn each_job_writes_every_block_once_and_reads_it_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        for depth in [1, 8] {
            let outcome = match kernel_run(file.path(), &workload(Rw::Randwrite, depth)) {
                Ok(outcome) => outcome,
                Err(error) => {
                    println!("SKIPPED: no direct I/O or no io_uring here: {error}");
                    return;
                }
            };
            assert_eq!(outcome.write.ios(), 512);
            assert_eq!(outcome.verified_blocks, 512);
            let outcome = kernel_run(file.path(), &workload(Rw::Randread, depth)).unwrap();
            assert_eq!((outcome.read.ios(), outcome.verified_blocks), (512, 512));
            let outcome = kernel_run(file.path(), &workload(Rw::Randrw, depth)).unwrap();
            assert_eq!(outcome.all().ios(), 512);
            assert_eq!(outcome.verified_blocks, outcome.write.ios());
        }
        file.as_file().write_at(b"x", 777_777).unwrap();
        let error = kernel_run(file.path(), &workload(Rw::Read, 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert_eq!(error.offset(), Some(777_777 / 4096 * 4096));
    }

    /// An engine that does nothing, and takes a microsecond for it.
    struct Idle(Vec<u8>, Vec<usize>);

    impl Engine for Idle {
        fn slot_mut(&mut self, _: usize) -> &mut [u8] {
            &mut self.0
        }

        fn submit(&mut self, slot: usize, _: LoadOp, _: u64) -> Result<()> {
            self.1.push(slot);
            Ok(())
        }

        fn poll(&mut self, done: &mut impl FnMut(usize, Result<usize>)) -> Result<()> {
            std::thread::sleep(Duration::from_micros(1));
            let bytes = self.0.len();
            self.1.drain(..).for_each(|slot| done(slot, Ok(bytes)));
            Ok(())
        }

        fn sync(&mut self, _: SyncKind) -> Result<()> {
            Ok(())
        }

        fn touch(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_job_without_an_engine_or_thread_ends_the_others() {
        let workload = workload(Rw::Read, 1);
        let error = run(&workload, &|_| {}, |job| match job {
            0 => Ok(Idle(vec![0; 4096], Vec::new())),
            _ => Err(Error::new(ErrorKind::Busy, "no engine")),
        });
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Busy);
        // The thread that never came: the first one waits for it, until it is given up.
        let start = Start::new(2);
        std::thread::scope(|scope| {
            let place = start.enter();
            let first = scope.spawn(|| place.wait());
            start.give_up();
            assert!(!first.join().unwrap());
        });
    }

    #[test]
    fn what_is_done_within_the_ramp_is_counted_and_said() {
        let mut workload = workload(Rw::Read, 1);
        (workload.verify, workload.number_ios) = (false, Some(5));
        workload.ramp_time = Some(Duration::from_secs(3600));
        let idle = |_| Ok(Idle(vec![0; 4096], Vec::new()));
        let outcome = run(&workload, &|_| {}, idle).unwrap();
        assert!(outcome.only_ramp && outcome.read.ios() == 10);
        workload.ramp_time = Some(Duration::from_nanos(1));
        let outcome = run(&workload, &|_| {}, idle).unwrap();
        assert!(!outcome.only_ramp && outcome.read.ios() == 10);
    }

    #[test]
    fn a_read_past_the_end_and_a_missing_file_are_errors() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 19).unwrap();
        let mut workload = workload(Rw::Read, 1);
        workload.verify = false;
        assert!(kernel_run(file.path(), &workload).is_err());
        let error = kernel_run(std::path::Path::new("/no/such/file"), &workload).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
