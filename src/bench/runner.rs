//! Drives engines through a workload and measures each operation from its submission to its reaping.
//!
//! The clock is read once before an operation is handed to the engine and once after each poll that reaped
//! something; buffers are filled before and checked after that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use xtent::internals::sys::{Ticks, spawn_scoped};
use xtent::{Error, ErrorKind, Result};

use super::hist::Direction;
use super::pattern;
use super::workload::{Rw, Steps, Workload, mix};
use super::{Engine, Op};

/// What a workload came to: all jobs together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) read: Direction,
    pub(crate) write: Direction,
    /// The measured time of the job that took longest, without ramp and without the final flush.
    pub(crate) elapsed: Duration,
    /// Blocks whose pattern was read back and found right.
    pub(crate) verified_blocks: u64,
    /// A job was done before its ramp time was over: all that it did is counted.
    pub(crate) only_ramp: bool,
}

impl Outcome {
    /// Reads and writes together.
    pub(crate) fn all(&self) -> Direction {
        let mut all = self.read.clone();
        all.add(&self.write);
        all
    }
}

/// Called now and then with the operations done so far.
pub(crate) type Tick<'a> = &'a dyn Fn(u64);

/// Runs the workload, each job on a thread of its own with the engine that `make` gives it there.
pub(crate) fn run<E: Engine>(
    workload: &Workload,
    tick: Tick<'_>,
    make: impl Fn(usize) -> Result<E> + Sync,
) -> Result<Outcome> {
    workload.check()?;
    let jobs = workload.numjobs;
    let counters: Vec<AtomicU64> = (0..jobs).map(|_| AtomicU64::new(0)).collect();
    let start = Start::new(jobs);
    let outcomes = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs)
            .map(|job| {
                let (make, start, ios) = (&make, &start, &counters[job]);
                spawn_scoped(scope, format!("job {job}"), move || {
                    let place = start.enter();
                    let engine = make(job)?;
                    let job = Job::new(workload, engine, job, ios)?;
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
        }
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect::<Result<Vec<Outcome>>>()
    })?;
    let mut total = Outcome::default();
    for outcome in outcomes {
        total.read.add(&outcome.read);
        total.write.add(&outcome.write);
        total.elapsed = total.elapsed.max(outcome.elapsed);
        total.verified_blocks += outcome.verified_blocks;
        total.only_ramp |= outcome.only_ramp;
    }
    Ok(total)
}

/// Where jobs meet before they begin: all of them, or none when one has no thread or no engine.
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

    /// The place of one job: dropped without [`StartPlace::wait`], by an error or a panic, it ends all.
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

/// The error when the user interrupted.
pub(crate) fn check_interrupted() -> Result<()> {
    match xtent::internals::sys::interrupted() {
        Some(_) => Err(Error::new(ErrorKind::System, "interrupted")),
        None => Ok(()),
    }
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    started: Ticks,
    op: Op,
    offset_bytes: u64,
}

struct Job<'a, E> {
    workload: &'a Workload,
    engine: E,
    steps: Steps,
    free: Vec<usize>,
    slots: Vec<Slot>,
    ended: Vec<(usize, Result<usize>)>,
    /// Blocks written, one bit each; empty without `--verify`.
    written: Vec<u64>,
    ios: &'a AtomicU64,
    /// Writes that ended since the last sync.
    unsynced: u64,
    outcome: Outcome,
    failure: Option<Error>,
}

impl<'a, E: Engine> Job<'a, E> {
    fn new(workload: &'a Workload, mut engine: E, job: usize, ios: &'a AtomicU64) -> Result<Self> {
        let depth = workload.iodepth;
        if workload.rw.writes() {
            for slot in 0..depth {
                pattern::fill_random(engine.slot_mut(slot), mix(workload.seed) ^ slot as u64);
            }
        }
        let bitmap = workload.verify && workload.rw.writes();
        let words = if bitmap {
            usize::try_from(workload.blocks_per_job().div_ceil(64)).unwrap_or(usize::MAX)
        } else {
            0
        };
        let idle = Slot {
            started: Ticks::now(),
            op: Op::Read,
            offset_bytes: 0,
        };
        Ok(Self {
            steps: workload.steps(job),
            workload,
            engine,
            free: (0..depth).rev().collect(),
            slots: vec![idle; depth],
            ended: Vec::with_capacity(depth),
            written: super::zeroed(words)?,
            ios,
            unsynced: 0,
            outcome: Outcome::default(),
            failure: None,
        })
    }

    fn run(mut self) -> Result<Outcome> {
        self.load();
        self.drain();
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        if self.workload.rw.writes() {
            self.engine.sync()?;
        }
        if !self.written.is_empty() {
            check_interrupted()?;
            self.read_back();
            self.drain();
        }
        match self.failure {
            Some(error) => Err(error),
            None => Ok(self.outcome),
        }
    }

    /// The measured part.
    fn load(&mut self) {
        let workload = self.workload;
        let measure_from = Ticks::now().after(workload.ramp_time.unwrap_or_default());
        let end = workload.runtime.map(|runtime| measure_from.after(runtime));
        let mut left = workload.operations_per_job().unwrap_or(u64::MAX);
        let mut count = 0;
        // As fio's ramp_time: what was before counts for nothing, unless nothing came after.
        let begun = Ticks::now();
        let mut in_ramp = workload.ramp_time.is_some();
        loop {
            while left > 0
                && self.failure.is_none()
                && !self.sync_is_due()
                && let Some(slot) = self.free.pop()
            {
                left -= 1;
                let step = self.steps.next_step();
                self.start(slot, step.op, step.offset_bytes);
            }
            if self.free.len() == self.slots.len() {
                if self.sync_is_due() && self.failure.is_none() {
                    self.sync_now(measure_from);
                    continue;
                }
                break;
            }
            let Some(now) = self.reap() else { continue };
            if in_ramp && now >= measure_from {
                in_ramp = false;
                self.outcome = Outcome {
                    verified_blocks: self.outcome.verified_blocks,
                    ..Outcome::default()
                };
            }
            while let Some((slot, result)) = self.ended.pop() {
                count += 1;
                self.finish(slot, result, now);
            }
            self.ios.store(count, Ordering::Relaxed);
            let from = if in_ramp { begun } else { measure_from };
            self.outcome.elapsed = Duration::from_nanos(now.nanoseconds_since(from));
            let stop = end.is_some_and(|end| now >= end) || self.failure.is_some();
            if stop || xtent::internals::sys::interrupted().is_some() {
                left = 0;
            }
        }
        self.outcome.only_ramp = in_ramp;
    }

    /// After so many writes nothing more is begun, and when nothing is in flight, all of it is made durable.
    #[inline]
    fn sync_is_due(&self) -> bool {
        self.workload.fsync > 0 && self.unsynced >= self.workload.fsync
    }

    #[cold]
    fn sync_now(&mut self, measure_from: Ticks) {
        self.unsynced = 0;
        if let Err(error) = self.engine.sync() {
            self.fail(error);
        }
        // It belongs to what was measured.
        self.outcome.elapsed = Duration::from_nanos(Ticks::now().nanoseconds_since(measure_from));
    }

    #[inline]
    fn start(&mut self, slot: usize, op: Op, offset_bytes: u64) {
        if op == Op::Write && self.workload.verify {
            pattern::fill(self.engine.slot_mut(slot), offset_bytes, self.workload.seed);
        }
        self.slots[slot] = Slot {
            started: Ticks::now(),
            op,
            offset_bytes,
        };
        if let Err(error) = self.engine.submit(slot, op, offset_bytes) {
            self.free.push(slot);
            self.fail(error);
        }
    }

    /// Polls; the time, when something has ended.
    #[inline]
    fn reap(&mut self) -> Option<Ticks> {
        let ended = &mut self.ended;
        let polled = self
            .engine
            .poll(&mut |slot, result| ended.push((slot, result)));
        if let Err(error) = polled {
            // The engine is broken: what is in flight will never be reaped.
            self.fail(error);
            self.free = (0..self.slots.len()).collect();
            return None;
        }
        (!self.ended.is_empty()).then(Ticks::now)
    }

    #[inline]
    fn finish(&mut self, slot: usize, result: Result<usize>, now: Ticks) {
        let Slot {
            started,
            op,
            offset_bytes,
        } = self.slots[slot];
        self.free.push(slot);
        match result {
            Ok(bytes) if bytes == self.workload.block_bytes => {
                self.unsynced += u64::from(op == Op::Write);
                let direction = match op {
                    Op::Read => &mut self.outcome.read,
                    Op::Write => &mut self.outcome.write,
                };
                direction.record_ns(now.nanoseconds_since(started), bytes);
                if self.workload.verify {
                    self.verify(slot, op, offset_bytes);
                }
            }
            Ok(bytes) => self.fail(
                Error::new(
                    ErrorKind::Io,
                    format!("{bytes} bytes instead of {}", self.workload.block_bytes),
                )
                .at_offset(offset_bytes),
            ),
            Err(error) => self.fail(error.at_offset(offset_bytes)),
        }
    }

    fn verify(&mut self, slot: usize, op: Op, offset_bytes: u64) {
        match op {
            Op::Write => {
                let block = self.steps.block_at(offset_bytes);
                let (word, bit) = (usize::try_from(block / 64).unwrap_or(0), block % 64);
                if let Some(word) = self.written.get_mut(word) {
                    *word |= 1 << bit;
                }
            }
            // What a mixed workload reads may not have been written yet; it is read back in the end.
            Op::Read if matches!(self.workload.rw, Rw::Read | Rw::Randread) => {
                self.check_pattern(slot, offset_bytes);
            }
            Op::Read => {}
        }
    }

    fn check_pattern(&mut self, slot: usize, offset_bytes: u64) {
        let block = self.engine.slot_mut(slot);
        match pattern::check(block, offset_bytes, self.workload.seed) {
            Ok(()) => self.outcome.verified_blocks += 1,
            Err(text) => self.fail(
                Error::new(ErrorKind::Corrupt, text)
                    .during("verify")
                    .at_offset(offset_bytes),
            ),
        }
    }

    /// Reads every block that was written and checks its pattern.
    fn read_back(&mut self) {
        let mut next = 0;
        let blocks = self.workload.blocks_per_job();
        loop {
            let stop = self.failure.is_some() || xtent::internals::sys::interrupted().is_some();
            while !stop && next < blocks {
                let word = self.written[usize::try_from(next / 64).unwrap_or(0)];
                if word >> (next % 64) & 1 == 0 {
                    next += 1;
                    continue;
                }
                let Some(slot) = self.free.pop() else { break };
                // Stale content must not pass for what was read.
                self.engine.slot_mut(slot).fill(0);
                self.start(slot, Op::Read, self.steps.offset_of(next));
                next += 1;
            }
            if self.free.len() == self.slots.len() {
                return;
            }
            if self.reap().is_none() {
                continue;
            }
            while let Some((slot, result)) = self.ended.pop() {
                let offset_bytes = self.slots[slot].offset_bytes;
                self.free.push(slot);
                match result {
                    Ok(_) => self.check_pattern(slot, offset_bytes),
                    Err(error) => self.fail(error.at_offset(offset_bytes)),
                }
            }
        }
    }

    /// Waits for what a failure left in flight.
    fn drain(&mut self) {
        while self.free.len() < self.slots.len() {
            self.reap();
            while let Some((slot, _)) = self.ended.pop() {
                self.free.push(slot);
            }
        }
    }

    /// Keeps the first error.
    #[cold]
    fn fail(&mut self, error: Error) {
        self.failure.get_or_insert(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::kernel::KernelEngine;
    use std::os::unix::fs::FileExt;

    fn workload(rw: Rw, iodepth: usize) -> Workload {
        Workload {
            name: "test".into(),
            rw,
            rwmixread: 50,
            block_bytes: 4096,
            iodepth,
            numjobs: 2,
            size_bytes: 1 << 20,
            runtime: None,
            time_based: false,
            ramp_time: None,
            number_ios: None,
            verify: true,
            seed: 9,
            buffered: false,
            fsync: 0,
        }
    }

    fn kernel_run(path: &std::path::Path, workload: &Workload) -> Result<Outcome> {
        run(workload, &|_| {}, |_| {
            KernelEngine::new(
                path,
                workload.rw.writes(),
                workload.iodepth,
                workload.block_bytes,
            )
        })
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

        fn submit(&mut self, slot: usize, _: Op, _: u64) -> Result<()> {
            self.1.push(slot);
            Ok(())
        }

        fn poll(&mut self, done: &mut impl FnMut(usize, Result<usize>)) -> Result<()> {
            std::thread::sleep(Duration::from_micros(1));
            let bytes = self.0.len();
            self.1.drain(..).for_each(|slot| done(slot, Ok(bytes)));
            Ok(())
        }

        fn sync(&mut self) -> Result<()> {
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
