//! A filesystem in an image file, made by mkfs.xfs, and its state in memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::super::super::buf::BufKind;
use super::super::super::format::superblock::SuperblockLayout;
use super::super::super::format::{self, superblock};
use super::super::super::superblock::Superblock;
use super::super::super::trans::{MetaState, Trans};
use crate::error::Result;
use crate::xfs::MetaIo;

/// A file as a device.
pub(super) struct ImageFile(File);

impl MetaIo for ImageFile {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_exact_at(buf, addr).unwrap();
        Ok(())
    }

    fn write_at(&mut self, addr: u64, buf: &[u8]) -> Result<()> {
        self.0.write_all_at(buf, addr).unwrap();
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }
}

/// The log sequence number of the next record: behind all that mkfs.xfs wrote.
const HEAD_LSN: u64 = 2 << 32;

/// A filesystem that is changed in memory.
pub(super) struct Volume {
    dir: TempDir,
    pub(super) io: ImageFile,
    pub(super) state: MetaState,
}

fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places.map(|dir| dir.join(name)).find(|file| file.exists())
}

fn command(name: &str) -> Command {
    let mut command = Command::new(tool(name).unwrap());
    // With these mkfs.xfs allows sizes that are too small for daily use.
    command.envs(["TEST_DIR", "TEST_DEV", "QA_CHECK_FS"].map(|name| (name, "1")));
    command
}

impl Volume {
    /// A new filesystem; `None`, with a notice, without mkfs.xfs.
    pub(super) fn make(mib: u64, arguments: &str) -> Option<Self> {
        if tool("mkfs.xfs").is_none() || tool("xfs_repair").is_none() {
            println!("SKIPPED: mkfs.xfs or xfs_repair is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let mut options = File::options();
        let options = options.create_new(true).read(true).write(true);
        let file = options.open(&path).unwrap();
        file.set_len(mib << 20).unwrap();
        let mut mkfs = command("mkfs.xfs");
        mkfs.arg("-fq")
            .args(arguments.split_whitespace())
            .arg(&path);
        let output = mkfs.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let mut io = ImageFile(file);
        let superblock = Superblock::read(&mut io, false).unwrap();
        let state = MetaState::new(&superblock, HEAD_LSN);
        Some(Self { dir, io, state })
    }

    pub(super) fn begin(&mut self) -> Trans<'_> {
        Trans::begin(&mut self.state, &mut self.io).unwrap()
    }

    /// All that was committed is durable.
    pub(super) fn force(&mut self) {
        self.state.busy.expire(self.state.checkpoint);
        self.state.checkpoint += 1;
    }

    /// The newest content of a buffer.
    pub(super) fn bytes(&mut self, addr: u64, len: usize) -> Vec<u8> {
        match self.state.buffers.get(addr) {
            Some(buffer) => buffer.bytes.to_vec(),
            None => {
                let mut bytes = vec![0; len];
                self.io.read_at(addr, &mut bytes).unwrap();
                bytes
            }
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        Path::new(self.dir.path()).join("image")
    }

    /// Writes everything in place, as at the end of a clean unmount.
    pub(super) fn write_in_place(&mut self) {
        let end = self.io.capacity_bytes();
        for (addr, buffer) in self.state.buffers.overlapping(0, end) {
            self.io.write_at(addr, &buffer.newest()).unwrap();
        }
        let len = self.state.superblock.geometry.sector_bytes as usize;
        let mut sector = vec![0; len];
        self.io.read_at(0, &mut sector).unwrap();
        let counter = std::mem::offset_of!(SuperblockLayout, fdblocks);
        sector[counter..counter + 8].copy_from_slice(&self.state.free_blocks.to_be_bytes());
        format::set_checksum(&mut sector, superblock::CRC_OFFSET);
        self.io.write_at(0, &sector).unwrap();
    }

    /// What `xfs_repair -n` says of the image, and whether it found no fault.
    pub(super) fn repair(&self) -> (bool, String) {
        let mut repair = command("xfs_repair");
        // There may be one group only.
        repair.args(["-n", "-o", "force_geometry"]).arg(self.path());
        let output = repair.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (output.status.success(), text)
    }

    /// The address of a group's header.
    pub(super) fn header(&mut self, ag: u32, kind: BufKind) -> u64 {
        self.begin().place_of_header(ag, kind).addr_bytes
    }
}
