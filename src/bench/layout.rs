//! The length and the extents of a file before a workload is measured: fio's `fallocate`, and the
//! files that a comparison makes anew for each run.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions as KernelOptions};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use clap::ValueEnum;
use serde::Serialize;
use xtent::internals::sys;
use xtent::volume::{File, Io, OpenOptions, Volume};
use xtent::{Error, Result};

use super::pattern;

/// Bytes of one write that fills a file.
const FILL_BYTES: usize = 1 << 20;

/// fio's `fallocate`: the space of a file before it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Fallocate {
    /// As it is: writes past the end make the file longer
    None,
    /// Preallocate with fallocate(2), and make the file that long
    #[value(alias = "posix")]
    Native,
    /// Preallocate with FALLOC_FL_KEEP_SIZE: the length stays
    Keep,
    /// Make the file that long with ftruncate(2), without blocks
    Truncate,
}

impl Fallocate {
    /// Lays out a range of a file that will be written.
    pub(crate) fn apply(self, file: &mut impl LayoutFile, range: Range<u64>) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Native => file.allocate(range, false),
            Self::Keep => file.allocate(range, true),
            Self::Truncate if range.end > file.len_bytes()? => file.set_len(range.end),
            Self::Truncate => Ok(()),
        }
    }
}

/// The file of a workload of a comparison, as both sides make it before they are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Layout {
    /// A file that is there, and is overwritten
    #[default]
    Found,
    /// Nothing: writes make it longer
    Empty,
    /// A hole
    Sparse,
    /// Unwritten extents
    Preallocated,
    /// Written extents of so many bytes, no two of which are one on the device
    Fragmented(u64),
}

impl Layout {
    /// Makes it a file of so many bytes, or one that is to have as many.
    pub(crate) fn apply(self, file: &mut impl LayoutFile, len_bytes: u64) -> Result<()> {
        if self == Self::Found {
            return Ok(());
        }
        file.set_len(0)?;
        match self {
            Self::Found | Self::Empty => {}
            Self::Sparse => file.set_len(len_bytes)?,
            Self::Preallocated => file.allocate(0..len_bytes, false)?,
            Self::Fragmented(extent_bytes) => {
                file.allocate(0..2 * len_bytes, false)?;
                fill(file, 2 * len_bytes)?;
                // Every second extent goes, and those behind it move up. The last is cut off: a
                // range that ends with the file cannot be collapsed.
                let mut at = extent_bytes;
                while at < len_bytes {
                    file.collapse(at..at + extent_bytes)?;
                    at += extent_bytes;
                }
                file.set_len(len_bytes)?;
            }
        }
        file.sync()
    }
}

fn fill(file: &mut impl LayoutFile, len_bytes: u64) -> Result<()> {
    let mut chunk = vec![0; FILL_BYTES];
    pattern::fill_random(&mut chunk, len_bytes);
    let mut at = 0;
    while at < len_bytes {
        let rest = usize::try_from(len_bytes - at).unwrap_or(usize::MAX);
        let bytes = &chunk[..rest.min(FILL_BYTES)];
        file.write(bytes, at)?;
        at += bytes.len() as u64;
    }
    Ok(())
}

/// A file of either side whose length and space can be changed.
pub(crate) trait LayoutFile {
    fn len_bytes(&self) -> Result<u64>;

    fn set_len(&mut self, len_bytes: u64) -> Result<()>;

    fn allocate(&mut self, range: Range<u64>, keep_size: bool) -> Result<()>;

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<()>;

    fn collapse(&mut self, range: Range<u64>) -> Result<()>;

    fn sync(&mut self) -> Result<()>;
}

/// A file of a volume.
#[derive(Debug)]
pub(crate) struct VolumeFile {
    io: Io,
    file: File,
}

impl VolumeFile {
    pub(crate) fn open(volume: &Volume, path: &[u8]) -> Result<Self> {
        let mut io = volume.io()?;
        let options = OpenOptions::new().read(true).write(true);
        let file = options.open(volume, &mut io, OsStr::from_bytes(path))?;
        Ok(Self { io, file })
    }
}

impl LayoutFile for VolumeFile {
    fn len_bytes(&self) -> Result<u64> {
        Ok(self.file.len())
    }

    fn set_len(&mut self, len_bytes: u64) -> Result<()> {
        self.file.set_len(&mut self.io, len_bytes)
    }

    fn allocate(&mut self, range: Range<u64>, keep_size: bool) -> Result<()> {
        self.file.allocate(&mut self.io, range, keep_size)
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(&mut self.io, bytes, offset)
    }

    fn collapse(&mut self, range: Range<u64>) -> Result<()> {
        self.file.collapse_range(&mut self.io, range)
    }

    fn sync(&mut self) -> Result<()> {
        self.file.sync_all(&mut self.io)
    }
}

/// A file of a mounted filesystem.
#[derive(Debug)]
pub(crate) struct KernelFile(fs::File);

impl KernelFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = KernelOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|e| {
            Error::system("cannot open the file", e).at_path(path.as_os_str().as_bytes())
        })?;
        Ok(Self(file))
    }
}

fn failed(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::system(what, error)
}

impl LayoutFile for KernelFile {
    fn len_bytes(&self) -> Result<u64> {
        let metadata = self.0.metadata();
        Ok(metadata.map_err(failed("cannot stat the file"))?.len())
    }

    fn set_len(&mut self, len_bytes: u64) -> Result<()> {
        let done = self.0.set_len(len_bytes);
        done.map_err(failed("cannot set the file's length"))
    }

    fn allocate(&mut self, range: Range<u64>, keep_size: bool) -> Result<()> {
        sys::preallocate(&self.0, range, keep_size).map_err(failed("fallocate failed"))
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        let done = self.0.write_all_at(bytes, offset);
        done.map_err(failed("cannot fill the file"))
    }

    fn collapse(&mut self, range: Range<u64>) -> Result<()> {
        sys::collapse_range(&self.0, range).map_err(failed("cannot collapse a range"))
    }

    fn sync(&mut self) -> Result<()> {
        self.0.sync_all().map_err(failed("fsync failed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Calls(u64, Vec<String>);

    impl LayoutFile for Calls {
        fn len_bytes(&self) -> Result<u64> {
            Ok(self.0)
        }

        fn set_len(&mut self, len_bytes: u64) -> Result<()> {
            self.0 = len_bytes;
            self.1.push(format!("length {len_bytes}"));
            Ok(())
        }

        fn allocate(&mut self, range: Range<u64>, keep_size: bool) -> Result<()> {
            if !keep_size {
                self.0 = self.0.max(range.end);
            }
            self.1.push(format!("allocate {range:?} {keep_size}"));
            Ok(())
        }

        fn write(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
            assert!(offset + bytes.len() as u64 <= self.0);
            Ok(())
        }

        fn collapse(&mut self, range: Range<u64>) -> Result<()> {
            assert!(range.end < self.0);
            self.0 -= range.end - range.start;
            self.1.push(format!("collapse {range:?}"));
            Ok(())
        }

        fn sync(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn fallocate_is_that_of_fio() {
        for (fallocate, expected, len) in [
            (Fallocate::None, vec![], 10),
            (Fallocate::Native, vec!["allocate 5..20 false"], 20),
            (Fallocate::Keep, vec!["allocate 5..20 true"], 10),
            (Fallocate::Truncate, vec!["length 20"], 20),
        ] {
            let mut file = Calls(10, Vec::new());
            fallocate.apply(&mut file, 5..20).unwrap();
            assert_eq!(
                (file.0, file.1),
                (len, expected.iter().map(|s| (*s).to_owned()).collect())
            );
        }
        let mut long = Calls(30, Vec::new());
        Fallocate::Truncate.apply(&mut long, 5..20).unwrap();
        assert_eq!(long.0, 30, "it is not cut off");
    }

    #[test]
    fn every_layout_has_its_length() {
        for (layout, len) in [
            (Layout::Found, 7),
            (Layout::Empty, 0),
            (Layout::Sparse, 64 << 10),
            (Layout::Preallocated, 64 << 10),
            (Layout::Fragmented(4096), 64 << 10),
        ] {
            let mut file = Calls(7, Vec::new());
            layout.apply(&mut file, 64 << 10).unwrap();
            assert_eq!(file.0, len, "{layout:?}");
            let collapsed = file.1.iter().filter(|call| call.starts_with("collapse"));
            let expected = if layout == Layout::Fragmented(4096) {
                15
            } else {
                0
            };
            assert_eq!(collapsed.count(), expected);
        }
    }
}
