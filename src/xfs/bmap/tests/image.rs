//! A filesystem with empty files that mkfs.xfs made, in memory and in an image.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::super::super::MetaIo;
use super::super::super::check::check;
use super::super::super::format;
use super::super::super::format::superblock::{self, SuperblockLayout};
use super::super::super::geometry::Ino;
use super::super::super::superblock::Superblock;
use super::super::super::trans::{MetaState, Trans};
use super::super::ForkId;
use crate::error::Result;

struct FileDisk(File);

impl MetaIo for FileDisk {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_exact_at(buf, addr).unwrap();
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }
}

/// The log sequence number of the next record: behind all that mkfs.xfs wrote.
const HEAD_LSN: u64 = 2 << 32;

pub(super) struct ProtoImage {
    dir: TempDir,
    disk: FileDisk,
    state: MetaState,
    files: usize,
    free_at_start: u64,
}

fn tool(name: &str) -> Option<Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let program = places.find_map(|dir| Some(dir.join(name)).filter(|file| file.exists()))?;
    let mut command = Command::new(program);
    // With these mkfs.xfs allows sizes that are too small for daily use.
    command.envs(["TEST_DIR", "TEST_DEV", "QA_CHECK_FS"].map(|name| (name, "1")));
    Some(command)
}

impl ProtoImage {
    /// A new filesystem with empty files; `None`, with a notice, without mkfs.xfs.
    pub(super) fn make(options: &str, files: usize) -> Option<Self> {
        let (Some(mut mkfs), Some(_)) = (tool("mkfs.xfs"), tool("xfs_repair")) else {
            println!("SKIPPED: mkfs.xfs or xfs_repair is not installed");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty");
        File::create(&empty).unwrap();
        let mut proto = "dummy\n0 0\nd--755 0 0\n".to_owned();
        for index in 0..files {
            proto += &format!("f{index} ---644 0 0 {}\n", empty.display());
        }
        let proto_path = dir.path().join("proto");
        std::fs::write(&proto_path, proto + "$\n").unwrap();
        let path = dir.path().join("image");
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path);
        let disk = file.unwrap();
        disk.set_len(40 << 20).unwrap();
        let output = mkfs
            .args(["-fq", "-p"])
            .arg(proto_path)
            .args(options.split_whitespace())
            .arg(path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let mut disk = FileDisk(disk);
        let superblock = Superblock::read(&mut disk, false).unwrap();
        Some(Self {
            dir,
            disk,
            state: MetaState::new(&superblock, HEAD_LSN),
            files,
            free_at_start: superblock.free_blocks,
        })
    }

    /// The data forks of the files. They follow the root directory and two files of the realtime
    /// section.
    pub(super) fn files(&self) -> Vec<ForkId> {
        let root = self.state.superblock.geometry.root_ino.0;
        let inos = (0..self.files as u64).map(|index| Ino(root + 3 + index));
        inos.map(ForkId::data).collect()
    }

    pub(super) fn begin(&mut self) -> Trans<'_> {
        Trans::begin(&mut self.state, &mut self.disk).unwrap()
    }

    /// All that was committed is durable.
    pub(super) fn force(&mut self) {
        self.state.busy.expire(self.state.checkpoint);
        self.state.checkpoint += 1;
    }

    /// Writes everything in place, as at the end of a clean unmount, and has xfs_repair and the own
    /// checker check it.
    pub(super) fn assert_clean(&mut self, seed: u64) {
        let disk = &self.disk.0;
        for (addr, buffer) in self.state.buffers.overlapping(0, u64::MAX) {
            let mut image = buffer.newest();
            if !buffer.slots.is_empty() {
                let inode_bytes = image.len() / buffer.slots.len();
                for inode in image.chunks_mut(inode_bytes) {
                    format::set_checksum(inode, format::inode::CRC_OFFSET);
                }
            }
            disk.write_all_at(&image, addr).unwrap();
        }
        let sector_bytes = self.state.superblock.geometry.sector_bytes as usize;
        let mut sector = vec![0; sector_bytes];
        disk.read_exact_at(&mut sector, 0).unwrap();
        let counter = std::mem::offset_of!(SuperblockLayout, fdblocks);
        sector[counter..counter + 8].copy_from_slice(&self.state.free_blocks.to_be_bytes());
        format::set_checksum(&mut sector, superblock::CRC_OFFSET);
        disk.write_all_at(&sector, 0).unwrap();
        let mut repair = tool("xfs_repair").unwrap();
        let output = repair
            .args(["-n", "-o", "force_geometry"])
            .arg(self.dir.path().join("image"))
            .output();
        let output = output.unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.success(), "seed {seed}: {text}");
        let report = check(&mut self.disk).unwrap();
        assert!(report.is_clean(), "seed {seed}: {:?}", report.findings);
    }

    /// The files have no blocks, and nothing was lost.
    pub(super) fn assert_empty(&mut self, seed: u64) {
        let expected = self.free_at_start;
        assert_eq!(self.state.free_blocks, expected, "seed {seed}");
    }
}
