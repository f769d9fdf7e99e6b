//! Where an archive goes: standard output, or a file that has its name when it is whole.

use std::io::{BufWriter, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use xtent::internals::sys::HostDir;

use super::member::BLOCK_BYTES;
use crate::cli::failure::{Failure, OPERATION, USAGE};
use crate::cli::output::{RawOut, raw_stdout};

/// An archive is a multiple of this, as tar(1) makes it (blocking factor 20).
const RECORD_BYTES: u64 = 20 * BLOCK_BYTES as u64;
const BUFFER_BYTES: usize = 256 << 10;

pub(super) struct Output {
    out: BufWriter<RawOut>,
    /// Bytes so far.
    bytes: u64,
    part: Option<Part>,
}

/// A file that is not whole.
struct Part {
    dir: HostDir,
    part: Vec<u8>,
    name: Vec<u8>,
    path: PathBuf,
    replace: bool,
}

impl Output {
    pub(super) fn open(place: &Path, force: bool) -> Result<Self, Failure> {
        let (out, part) = if place.as_os_str() == "-" {
            if std::io::stdout().is_terminal() {
                let text = "an archive is not written to a terminal: redirect standard output, or name a file";
                return Err(Failure::new(USAGE, text));
            }
            (raw_stdout()?, None)
        } else {
            let (out, part) = Part::make(place, force)?;
            (out, Some(part))
        };
        Ok(Self {
            out: BufWriter::with_capacity(BUFFER_BYTES, out),
            bytes: 0,
            part,
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.bytes += bytes.len() as u64;
        let written = self.out.write_all(bytes);
        written.map_err(|error| match &self.part {
            Some(part) => Failure::local("cannot write", &part.path, error),
            None => error.into(),
        })
    }

    pub(super) fn zeroes(&mut self, mut count: u64) -> Result<(), Failure> {
        const ZEROES: [u8; 4096] = [0; 4096];
        while count > 0 {
            crate::cli::failure::check_interrupted()?;
            let n = usize::try_from(count).map_or(ZEROES.len(), |count| count.min(ZEROES.len()));
            self.write(&ZEROES[..n])?;
            count -= n as u64;
        }
        Ok(())
    }

    /// Zeroes up to the next multiple.
    pub(super) fn fill(&mut self, multiple: u64) -> Result<(), Failure> {
        self.zeroes(self.bytes.next_multiple_of(multiple) - self.bytes)
    }

    /// Ends the archive: two blocks of zeroes, and the rest of a record.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        self.zeroes(2 * BLOCK_BYTES as u64)?;
        self.fill(RECORD_BYTES)?;
        let flushed = self.out.flush();
        match self.part.take() {
            None => Ok(flushed?),
            Some(part) => {
                let failed = |error| Failure::local("cannot write", &part.path, error);
                flushed.map_err(failed)?;
                let renamed = part.dir.rename(&part.part, &part.name, part.replace);
                renamed.map_err(failed)
            }
        }
    }
}

impl Part {
    /// Makes the file, under another name.
    fn make(path: &Path, replace: bool) -> Result<(RawOut, Self), Failure> {
        let failed = |error| Failure::local("cannot make", path, error);
        let no_file = || Failure::new(OPERATION, format!("{}: not a file's name", path.display()));
        let name = path.file_name().ok_or_else(no_file)?.as_bytes();
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(no_file());
        }
        let dir = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let dir = HostDir::open(dir)
            .map_err(|error| Failure::local("cannot open the directory", dir, error))?;
        let refuse = |why: &str| Err(Failure::new(OPERATION, format!("{} {why}", path.display())));
        match dir.kind_of(name).map_err(failed)? {
            None => {}
            Some(libc::S_IFREG) if replace => {}
            Some(libc::S_IFREG) => return refuse("is there already: give --force to replace it"),
            Some(_) => return refuse("is not a regular file: give --tar - and redirect to it"),
        }
        let clock = SystemTime::now().duration_since(UNIX_EPOCH);
        let clock = clock.unwrap_or_default().subsec_nanos();
        let part = format!(".xtent-part-{}-{clock}-tar", std::process::id()).into_bytes();
        let file = dir.create_file(&part, 0o666).map_err(failed)?;
        let part = Self {
            dir,
            part,
            name: name.to_vec(),
            path: path.to_owned(),
            replace,
        };
        Ok((RawOut::of(file), part))
    }
}

impl Drop for Part {
    /// Removes what has not got its name.
    fn drop(&mut self) {
        let _ = self.dir.remove_file(&self.part);
    }
}
