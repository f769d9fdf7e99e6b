//! Read every file of a tree at depth 32 on several threads, and print files and bytes per second.
//!
//! ```text
//! cargo run --release --example read_tree -- TARGET [THREADS]
//! cargo run --release --example read_tree -- dir:PATH [THREADS]
//! ```
//!
//! The first form reads through xtent (a target such as `disk.img,readonly`), the second one
//! through the kernel, for comparison.
//!
//! The threads take directories from one list, so that each file is opened and read by one of them.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use xtent::volume::{
    DirEntry, DmaBuf, Done, FileType, Io, OpenOptions, ReadDir, SubmitReason, Volume,
};

/// Reads in flight on each thread.
const DEPTH: usize = 32;
/// Longer files are read in pieces of this length.
const PIECE_BYTES: usize = 64 << 10;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let target = arguments
        .next()
        .ok_or("usage: read_tree TARGET [THREADS]")?;
    let threads = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let begin = Instant::now();
    let sum = match target.strip_prefix("dir:") {
        Some(dir) => {
            let work = Work::new(PathBuf::from(dir));
            on_threads(threads, || read_by_kernel(&work))?
        }
        None => read_by_xtent(&target, threads)?,
    };
    let seconds = begin.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "printed with few digits")]
    let (files, bytes) = (sum.files as f64, sum.bytes as f64);
    println!(
        "{} files, {} bytes in {seconds:.3} s: {:.0} files/s, {:.0} MiB/s",
        sum.files,
        sum.bytes,
        files / seconds,
        bytes / seconds / f64::from(1 << 20),
    );
    Ok(())
}

/// What was read.
#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    files: u64,
    bytes: u64,
}

fn on_threads(
    threads: usize,
    read: impl Fn() -> Result<Sum, Failure> + Sync,
) -> Result<Sum, Failure> {
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(&read)).collect();
        let mut sum = Sum::default();
        for thread in running {
            let part = thread.join().map_err(|_| "a thread panicked")??;
            sum.files += part.files;
            sum.bytes += part.bytes;
        }
        Ok(sum)
    })
}

/// Directories that no thread has read yet.
struct Work<T> {
    state: Mutex<(Vec<T>, usize)>,
    changed: Condvar,
}

impl<T> Work<T> {
    fn new(first: T) -> Self {
        Self {
            state: Mutex::new((vec![first], 0)),
            changed: Condvar::new(),
        }
    }

    /// A directory to read; `None` when all have been read.
    fn take(&self) -> Option<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(next) = state.0.pop() {
                state.1 += 1;
                return Some(next);
            }
            if state.1 == 0 {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn add(&self, dir: T) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.push(dir);
        self.changed.notify_one();
    }

    /// A directory that was taken has been read.
    fn done(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 -= 1;
        self.changed.notify_all();
    }
}

fn read_by_xtent(target: &str, threads: usize) -> Result<Sum, Failure> {
    let volume = Volume::open(target)?;
    let work = Work::new(None);
    on_threads(threads, || {
        let mut reader = Reader {
            volume: &volume,
            io: volume.io()?,
            spare: Vec::new(),
            sum: Sum::default(),
            failure: None,
        };
        for _ in 0..DEPTH {
            reader.spare.push(reader.io.alloc(PIECE_BYTES)?);
        }
        while let Some(dir) = work.take() {
            let result = reader.directory(dir.as_ref(), &work);
            work.done();
            result?;
        }
        reader.finish()
    })
}

/// One thread with up to [`DEPTH`] reads in flight.
struct Reader<'a> {
    volume: &'a Volume,
    io: Io,
    spare: Vec<DmaBuf>,
    sum: Sum,
    failure: Option<Failure>,
}

impl Reader<'_> {
    /// Reads the files of a directory; the root directory for `None`.
    fn directory(
        &mut self,
        entry: Option<&DirEntry>,
        work: &Work<Option<DirEntry>>,
    ) -> Result<(), Failure> {
        let mut dir: ReadDir = match entry {
            Some(entry) => entry.read_dir(&mut self.io)?,
            None => self.volume.read_dir(&mut self.io, "/")?,
        };
        while let Some(entry) = dir.next_entry(&mut self.io)? {
            match entry.file_type() {
                Some(FileType::Directory) => work.add(Some(entry)),
                Some(FileType::Regular) => self.file(&entry)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, entry: &DirEntry) -> Result<(), Failure> {
        let file = entry.open(&mut self.io, OpenOptions::new().read(true))?;
        self.sum.files += 1;
        let mut offset = 0;
        while offset < file.len() {
            let mut buf = loop {
                match self.spare.pop() {
                    Some(buf) => break buf,
                    None => self.poll(),
                }
            };
            loop {
                match self.io.submit_read(&file, offset, buf, 0) {
                    Ok(()) => break,
                    Err(refused) => match refused.reason {
                        SubmitReason::Full => {
                            buf = refused.buf;
                            self.poll();
                        }
                        SubmitReason::Error(error) => return Err(error.into()),
                    },
                }
            }
            offset += PIECE_BYTES as u64;
        }
        Ok(())
    }

    fn poll(&mut self) {
        let Self {
            io,
            spare,
            sum,
            failure,
            ..
        } = self;
        let ended = io.poll(DEPTH, |Done { buf, result, .. }| {
            match result {
                Ok(bytes) => sum.bytes += bytes as u64,
                Err(error) => *failure = Some(error.into()),
            }
            spare.push(buf);
        });
        if ended == 0 {
            io.relax();
        }
    }

    fn finish(mut self) -> Result<Sum, Failure> {
        while self.io.outstanding() > 0 {
            self.poll();
        }
        match self.failure {
            Some(failure) => Err(failure),
            None => Ok(self.sum),
        }
    }
}

/// Reads directories until there are none left, with a system call at a time.
fn read_by_kernel(work: &Work<PathBuf>) -> Result<Sum, Failure> {
    let mut buf = vec![0; PIECE_BYTES];
    let mut sum = Sum::default();
    while let Some(dir) = work.take() {
        let result = read_dir_by_kernel(&dir, work, &mut buf, &mut sum);
        work.done();
        result?;
    }
    Ok(sum)
}

fn read_dir_by_kernel(
    dir: &PathBuf,
    work: &Work<PathBuf>,
    buf: &mut [u8],
    sum: &mut Sum,
) -> Result<(), Failure> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            work.add(entry.path());
        } else if kind.is_file() {
            let mut file = fs::File::open(entry.path())?;
            sum.files += 1;
            loop {
                let n = file.read(buf)?;
                sum.bytes += n as u64;
                if n < buf.len() {
                    break;
                }
            }
        }
    }
    Ok(())
}
