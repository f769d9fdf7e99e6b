//! Completion latencies over time: fio's histogram log (`write_hist_log`) and HdrHistogram's
//! (`.hlog`).

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use xtent::{Error, Result};

use super::LoadOp;
use super::hist::Direction;
use super::latency::histogram;
use super::outcome::Outcome;
use super::plat;

/// The completion latencies of one interval.
#[derive(Debug, Clone)]
pub(crate) struct LogWindow {
    job: usize,
    op: LoadOp,
    start: Duration,
    end: Duration,
    latency_ns: Histogram<u64>,
}

/// A job's side of the log: takes the differences between one interval's end and the next.
#[derive(Debug)]
pub(super) struct HistogramLog {
    job: usize,
    interval: Duration,
    windows: Sender<LogWindow>,
    /// When the interval that is running began.
    start: Duration,
    /// The counts at that time: reads, writes.
    before: [Histogram<u64>; 2],
}

impl HistogramLog {
    pub(super) fn new(job: usize, interval: Duration, windows: Sender<LogWindow>) -> Self {
        Self {
            job,
            interval: interval.max(Duration::from_millis(1)),
            windows,
            start: Duration::ZERO,
            before: [histogram(), histogram()],
        }
    }

    pub(super) fn next_end(&self) -> Duration {
        self.start + self.interval
    }

    pub(super) fn mark(&mut self, elapsed: Duration, outcome: &Outcome) {
        if elapsed >= self.next_end() {
            self.end(elapsed, outcome);
        }
    }

    /// Ends the running interval.
    pub(super) fn end(&mut self, elapsed: Duration, outcome: &Outcome) {
        let directions: [(LoadOp, &Direction); 2] = [
            (LoadOp::Read, &outcome.read),
            (LoadOp::Write, &outcome.write),
        ];
        for ((op, direction), before) in directions.into_iter().zip(&mut self.before) {
            let Some(now) = direction.clat.histogram() else {
                continue;
            };
            let mut latency_ns = now.clone();
            // Same bounds, and never less than before: this cannot fail.
            let _ = latency_ns.subtract(&*before);
            before.clone_from(now);
            if latency_ns.is_empty() {
                continue;
            }
            // The receiver outlives the jobs.
            let _ = self.windows.send(LogWindow {
                job: self.job,
                op,
                start: self.start,
                end: elapsed,
                latency_ns,
            });
        }
        self.start = elapsed;
    }
}

/// The files of a log.
#[derive(Debug)]
pub(crate) struct LogFiles {
    /// fio's form: one file for each job, and the size of a block.
    fio: Vec<(PathBuf, BufWriter<File>)>,
    block_bytes: usize,
    /// HdrHistogram's form: one file for all jobs.
    hdr: Option<(PathBuf, BufWriter<File>)>,
    jobs: usize,
}

fn create(path: PathBuf) -> Result<(PathBuf, BufWriter<File>)> {
    let file = File::create(&path).map_err(|error| failed(&path, error))?;
    Ok((path, BufWriter::new(file)))
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::system(format!("cannot write {}", path.display()), error)
}

impl LogFiles {
    /// `PREFIX_clat_hist.N.log` for each job, and a file in HdrHistogram's form; either is
    /// optional.
    pub(crate) fn create(
        prefix: Option<&Path>,
        hlog: Option<&Path>,
        jobs: usize,
        block_bytes: usize,
    ) -> Result<Self> {
        let mut fio = Vec::new();
        if let Some(prefix) = prefix {
            for job in 1..=jobs {
                let mut name = prefix.as_os_str().to_owned();
                name.push(format!("_clat_hist.{job}.log"));
                fio.push(create(name.into())?);
            }
        }
        let mut hdr = None;
        if let Some(path) = hlog {
            let (path, mut file) = create(path.to_owned())?;
            let mut builder = IntervalLogWriterBuilder::new();
            builder
                .add_comment("[Histogram log format version 1.3]")
                .add_comment(
                    "[completion latencies of xtent bench in nanoseconds; maxima in milliseconds]",
                )
                .with_start_time(SystemTime::now())
                .with_max_value_divisor(1e6);
            builder
                .begin_log_with(&mut file, &mut V2DeflateSerializer::new())
                .map_err(|error| failed(&path, error))?;
            hdr = Some((path, file));
        }
        Ok(Self {
            fio,
            block_bytes,
            hdr,
            jobs,
        })
    }

    pub(crate) fn write(&mut self, window: &LogWindow) -> Result<()> {
        if let Some((path, file)) = self.fio.get_mut(window.job) {
            let line = fio_line(window, self.block_bytes);
            let written = file.write_all(line.as_bytes());
            written.map_err(|error| failed(path, error))?;
        }
        if let Some((path, file)) = &mut self.hdr {
            let line = hdr_line(window, self.jobs)?;
            let written = file.write_all(&line);
            written.map_err(|error| failed(path, error))?;
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<()> {
        for (path, file) in self.fio.iter_mut().chain(&mut self.hdr) {
            file.flush().map_err(|error| failed(path, error))?;
        }
        Ok(())
    }
}

/// `time in ms, direction, block size, count of bucket 0, ...`, as fio's `flush_hist_samples`.
fn fio_line(window: &LogWindow, block_bytes: usize) -> String {
    let direction = match window.op {
        LoadOp::Read => 0,
        LoadOp::Write => 1,
    };
    let mut line = format!("{}, {direction}, {block_bytes}", window.end.as_millis());
    for count in plat::counts(&window.latency_ns) {
        let _ = write!(line, ", {count}");
    }
    line.push('\n');
    line
}

/// `Tag=...,start in s,length in s,maximum in ms,histogram`.
fn hdr_line(window: &LogWindow, jobs: usize) -> Result<Vec<u8>> {
    let op = match window.op {
        LoadOp::Read => "read",
        LoadOp::Write => "write",
    };
    let tag = match jobs {
        1 => op.to_owned(),
        _ => format!("{op}-{}", window.job + 1),
    };
    let (mut line, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
    let mut log = IntervalLogWriterBuilder::new();
    let written = log
        .with_max_value_divisor(1e6)
        .begin_log_with(&mut line, &mut serializer)
        .map_err(|error| error.to_string())
        .and_then(|mut log| {
            let length = window.end.saturating_sub(window.start);
            log.write_histogram(&window.latency_ns, window.start, length, Tag::new(&tag))
                .map_err(|error| format!("{error:?}"))
        });
    written.map_err(|text| Error::system("histogram log", std::io::Error::other(text)))?;
    // The divisor is said once, in the head of the file.
    let own = line.iter().position(|&byte| byte == b'T').unwrap_or(0);
    Ok(line.split_off(own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    use std::sync::mpsc::channel;

    #[test]
    fn each_interval_has_its_own_operations() {
        let (sender, windows) = channel();
        let mut log = HistogramLog::new(1, Duration::from_millis(100), sender);
        let mut outcome = Outcome::default();
        outcome.read.record_ns(751, 4096);
        log.mark(Duration::from_millis(50), &outcome);
        assert!(windows.try_recv().is_err());
        log.mark(Duration::from_millis(110), &outcome);
        outcome.write.record_ns(2000, 4096);
        outcome.write.record_ns(9_000_000, 4096);
        log.end(Duration::from_millis(150), &outcome);
        let windows: Vec<LogWindow> = windows.try_iter().collect();
        assert_eq!(windows.len(), 2);
        let line = fio_line(&windows[0], 4096);
        assert!(line.starts_with("110, 0, 4096, 0, 0, "), "{line}");
        assert_eq!(line.split(", ").count(), 3 + plat::BUCKETS);
        let count = |window: &LogWindow| window.latency_ns.len();
        assert_eq!((count(&windows[0]), count(&windows[1])), (1, 2));

        let dir = tempfile::tempdir().unwrap();
        let (prefix, hlog) = (dir.path().join("x"), dir.path().join("x.hlog"));
        let mut files = LogFiles::create(Some(&prefix), Some(&hlog), 2, 4096).unwrap();
        windows
            .iter()
            .for_each(|window| files.write(window).unwrap());
        files.finish().unwrap();
        let read = |name| std::fs::read(dir.path().join(name)).unwrap();
        assert!(read("x_clat_hist.1.log").is_empty());
        let text = String::from_utf8(read("x_clat_hist.2.log")).unwrap();
        assert_eq!(text.lines().count(), 2);
        let hlog = read("x.hlog");
        let mut found = Vec::new();
        for entry in IntervalLogIterator::new(&hlog) {
            if let LogEntry::Interval(interval) = entry.unwrap() {
                let tag = interval.tag().unwrap().as_str().to_owned();
                found.push((tag, interval.start_timestamp(), interval.max()));
            }
        }
        let text = String::from_utf8_lossy(&hlog).into_owned();
        assert_eq!(text.matches("MaxValueDivisor").count(), 1, "{text}");
        assert_eq!(found.len(), 2, "{text}");
        assert_eq!(
            (found[0].0.as_str(), found[1].0.as_str()),
            ("read-2", "write-2")
        );
        assert_eq!(found[1].1, Duration::from_millis(110));
        assert!((found[1].2 - 9.0).abs() < 0.02, "{}", found[1].2);
    }
}
