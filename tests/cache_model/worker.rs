//! One thread of the model test.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rand::Rng;
use rand::rngs::StdRng;
use xtent::internals::block::{Op, Status};
use xtent::internals::cache::{ErrorCursor, FileCache};
use xtent::internals::iomap::buffered::{Buffered, ReadAdvice, ReadAhead};
use xtent::internals::mem::Lent;
use xtent::internals::mem::pages::Which;
use xtent::internals::nvme::QueuePair;

use crate::fs::{Block, FileOps, Fs};
use crate::model::Model;
use crate::rig::{chain, drain};
use crate::{COMMON_BYTES, Machine};

/// Longest file.
const MOST_BYTES: usize = 200_000;
const STRIPE: usize = 1000;

/// The thread that writes a byte of the common file.
pub(crate) fn stripe_owner(at: usize, threads: usize) -> usize {
    at / STRIPE % threads
}

/// What the threads share.
pub(crate) struct Shared {
    pub(crate) files: Vec<FileCache>,
    pub(crate) fs: Arc<Fs>,
    /// Held by who allocates in the common file.
    pub(crate) common_lock: Mutex<()>,
    /// What shared blocks hold.
    pub(crate) snapshots: Mutex<BTreeMap<u64, Vec<u8>>>,
    pub(crate) threads: usize,
}

/// Blocks of the device, past the cache.
pub(crate) struct Direct<'a> {
    machine: &'a Machine,
    queue: QueuePair,
    memory: Option<Lent>,
    block_bytes: u64,
}

impl<'a> Direct<'a> {
    pub(crate) fn new(machine: &'a Machine, block_bytes: u64) -> Self {
        Self {
            queue: machine.queue(),
            memory: Some(machine.memory.lend(4096)),
            machine,
            block_bytes,
        }
    }

    fn run(&mut self, op: Op, block: u64) {
        let memory = self.memory.as_ref().unwrap();
        let bytes = self.block_bytes as usize;
        let segment = [memory.segment(0..bytes).unwrap()];
        let lba_bytes = u64::from(xtent::internals::block::Queue::limits(&self.queue).block_bytes);
        let blocks = self.block_bytes / lba_bytes;
        let command = chain(op, block * blocks, blocks, &segment, 1);
        xtent::internals::block::Queue::submit(&mut self.queue, &command).unwrap();
        assert_eq!(drain(&mut self.queue)[&1], Status::Success);
    }

    pub(crate) fn read(&mut self, block: u64) -> Vec<u8> {
        self.run(Op::Read, block);
        let bytes = self.block_bytes as usize;
        let segment = self.memory.as_ref().unwrap().segment(0..bytes).unwrap();
        self.machine.memory.bytes(&[segment])
    }

    fn write(&mut self, block: u64, data: &[u8]) {
        let segment = self
            .memory
            .as_ref()
            .unwrap()
            .segment(0..data.len())
            .unwrap();
        self.machine.memory.fill(&[segment], data);
        self.run(Op::Write, block);
    }
}

pub(crate) struct Worker<'a> {
    thread: usize,
    shared: &'a Shared,
    rng: StdRng,
    model: &'a mut Model,
    common: &'a mut Model,
    buffered: Buffered<QueuePair>,
    ops: Vec<FileOps>,
    cursors: Vec<ErrorCursor>,
    ahead: ReadAhead,
    direct: Direct<'a>,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(
        thread: usize,
        machine: &'a Machine,
        shared: &'a Shared,
        rng: StdRng,
        model: &'a mut Model,
        common: &'a mut Model,
    ) -> Self {
        Self {
            thread,
            rng,
            model,
            common,
            buffered: Buffered::new(machine.queue(), shared.files[0].cache()),
            ops: (0..=shared.threads).map(|ino| shared.fs.ops(ino)).collect(),
            cursors: shared.files.iter().map(FileCache::error_cursor).collect(),
            ahead: ReadAhead::default(),
            direct: Direct::new(machine, shared.fs.block_bytes),
            shared,
        }
    }

    fn file(&self) -> &'a FileCache {
        &self.shared.files[self.thread]
    }

    pub(crate) fn end(&mut self) {
        self.buffered.settle();
    }

    pub(crate) fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..27 => self.write(),
            27..50 => self.read(),
            50..54 => self.view(),
            54..58 => self.direct_read(),
            58..62 => self.direct_write(),
            62..65 => self.set_size(),
            65..67 => self.sync(),
            67..69 => self.write_out(),
            69..72 => self.drop_pages(),
            72..74 => self.preallocate(),
            74 => self.snapshot(),
            75..86 => self.write_common(),
            86..94 => self.read_common(),
            94..97 => self.read_others(),
            _ => self.sync_others(),
        }
    }

    fn length(&mut self) -> usize {
        match self.rng.random_range(0..10) {
            0..4 => self.rng.random_range(1..200),
            4..7 => self.rng.random_range(1..5000),
            7 => 4096 * self.rng.random_range(1..4),
            _ => self.rng.random_range(1..40_000),
        }
    }

    fn position(&mut self) -> usize {
        let size = self.model.now.len();
        match self.rng.random_range(0..10) {
            0..6 => self.rng.random_range(0..=size),
            6 => size,
            7 => self.rng.random_range(0..=size / 4096) * 4096,
            _ => self.rng.random_range(0..MOST_BYTES),
        }
    }

    fn data(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.rng.random()).collect()
    }

    /// Writes all of it, writing back others' pages where there is too much of them.
    fn write_all(&mut self, ino: usize, pos: usize, data: &[u8]) {
        let file = &self.shared.files[ino];
        let mut done = 0;
        while done < data.len() {
            let at = (pos + done) as u64;
            let written = self
                .buffered
                .write(file, &mut self.ops[ino], at, &data[done..]);
            let written = written.unwrap();
            done += written.bytes;
            if written.throttled {
                for (ino, file) in self.shared.files.iter().enumerate() {
                    let ops = &mut self.ops[ino];
                    self.buffered
                        .write_out(file, ops, 0..u64::MAX, usize::MAX)
                        .unwrap();
                }
            }
        }
    }

    fn write(&mut self) {
        let pos = self.position();
        let len = self.length().min(MOST_BYTES - pos.min(MOST_BYTES));
        let data = self.data(len);
        // Before: a power cut may find any part of it.
        self.model.write(pos, &data);
        self.write_all(self.thread, pos, &data);
        assert_eq!(self.file().size_bytes(), self.model.now.len() as u64);
    }

    fn read_at(&mut self, ino: usize, pos: usize, len: usize) -> Vec<u8> {
        let mut buf = vec![0xaa; len];
        let file = &self.shared.files[ino];
        let read = self.buffered.read(
            file,
            &mut self.ops[ino],
            &mut self.ahead,
            pos as u64,
            &mut buf,
        );
        let n = read.unwrap();
        buf.truncate(n);
        buf
    }

    fn compare(&self, pos: usize, found: &[u8], what: &str) {
        let expected = &self.model.now[pos.min(self.model.now.len())..];
        let expected = &expected[..found.len()];
        if let Some(bad) = found.iter().zip(expected).position(|(a, b)| a != b) {
            panic!(
                "{what}: byte {} of file {} of {} bytes is {} and should be {}; block {:?}",
                pos + bad,
                self.thread,
                self.model.now.len(),
                found[bad],
                expected[bad],
                self.shared
                    .fs
                    .block(self.thread, (pos + bad) as u64 / self.shared.fs.block_bytes),
            );
        }
    }

    fn read(&mut self) {
        if self.rng.random_bool(0.05) {
            let advice = [
                ReadAdvice::Normal,
                ReadAdvice::Sequential,
                ReadAdvice::Random,
            ];
            self.ahead = ReadAhead::new(advice[self.rng.random_range(0..3)]);
        }
        let (pos, len) = (self.position(), self.length());
        let found = self.read_at(self.thread, pos, len);
        let expected = self.model.now.len().saturating_sub(pos).min(len);
        assert_eq!(
            found.len(),
            expected,
            "read {len} at {pos} of {}",
            self.model.now.len()
        );
        self.compare(pos, &found, "read");
    }

    fn view(&mut self) {
        let (pos, len) = (self.position(), self.length());
        self.read_at(self.thread, pos, 1);
        let file = self.file();
        if let Some(view) = file.view(self.buffered.tally(), pos as u64, len) {
            self.compare(pos, &view, "view");
            let before = view.to_vec();
            self.write();
            assert_eq!(before, *view, "a view changed");
        }
        if let Some(mut view) = file.view_mut(pos as u64, len) {
            let data = self.data(view.len());
            self.model.write(pos, &data);
            view.copy_from_slice(&data);
        }
    }

    fn direct_read(&mut self) {
        let bytes = self.shared.fs.block_bytes as usize;
        let size = self.model.now.len();
        if size == 0 || self.shared.fs.is_inline(self.thread) {
            return;
        }
        let first = self.rng.random_range(0..size) / bytes;
        let range = (first * bytes) as u64..((first + 4) * bytes) as u64;
        let (file, ops) = (self.file(), &mut self.ops[self.thread]);
        self.buffered.before_direct_read(file, ops, range).unwrap();
        if self.shared.fs.is_inline(self.thread) {
            return;
        }
        for block in first..first + 4 {
            let found = match self.shared.fs.block(self.thread, block as u64) {
                Some(Block::Written(at) | Block::Copying(at, None)) => self.direct.read(at),
                Some(Block::Copying(_, Some(_))) => panic!("still being copied"),
                _ => vec![0; bytes],
            };
            let from = block * bytes;
            let len = size.saturating_sub(from).min(bytes);
            self.compare(from, &found[..len], "direct read");
            // What lies behind the end may be anything: the size may be from before a loss of
            // power, the block from after.
        }
    }

    fn direct_write(&mut self) {
        let bytes = self.shared.fs.block_bytes as usize;
        let blocks = self.model.now.len() / bytes;
        if blocks == 0 {
            return;
        }
        let first = self.rng.random_range(0..blocks);
        let count = self.rng.random_range(1..=(blocks - first).min(4));
        let range = (first * bytes) as u64..((first + count) * bytes) as u64;
        let file = self.file();
        let ops = &mut self.ops[self.thread];
        self.buffered
            .before_direct_write(file, ops, range.clone())
            .unwrap();
        for block in first..first + count {
            // Where it would have to allocate it is left alone.
            if let Some(at) = self.shared.fs.own_block(self.thread, block as u64) {
                let data = self.data(bytes);
                self.model.write(block * bytes, &data);
                self.direct.write(at, &data);
            }
        }
        self.buffered.after_direct_write(file, range);
    }

    fn set_size(&mut self) {
        let size = self.position();
        let shrinks = size < self.model.now.len();
        self.model.set_len(size);
        let (file, ops) = (self.file(), &mut self.ops[self.thread]);
        self.buffered.set_size(file, ops, size as u64).unwrap();
        if shrinks {
            self.shared.fs.truncate(self.thread, size as u64);
        } else {
            self.shared.fs.set_disk_size(self.thread, size as u64);
        }
    }

    fn sync(&mut self) {
        let (file, ops) = (self.file(), &mut self.ops[self.thread]);
        let cursor = &mut self.cursors[self.thread];
        self.buffered.sync(file, ops, 0..u64::MAX, cursor).unwrap();
        self.model.synced();
        let durable = self.shared.fs.durable().inodes[self.thread].disk_size;
        let size = self.model.now.len() as u64;
        assert_eq!(durable, size, "the size that a sync makes durable");
    }

    fn write_out(&mut self) {
        let pos = self.position() as u64;
        let (file, ops) = (self.file(), &mut self.ops[self.thread]);
        self.buffered
            .write_out(file, ops, pos..pos + 50_000, 64)
            .unwrap();
    }

    fn drop_pages(&mut self) {
        let pos = self.position() as u64;
        let _ = self
            .file()
            .invalidate(pos..pos + 50_000, Which::Clean, self.rng.random_bool(0.5));
    }

    fn preallocate(&mut self) {
        let first = (self.position() / self.shared.fs.block_bytes as usize) as u64;
        self.shared
            .fs
            .preallocate(self.thread, first..first + self.rng.random_range(1..20));
    }

    /// Shares all written blocks: nothing of the file is dirty or cached then.
    fn snapshot(&mut self) {
        let (file, ops) = (self.file(), &mut self.ops[self.thread]);
        loop {
            self.buffered
                .write_out(file, ops, 0..u64::MAX, usize::MAX)
                .unwrap();
            if file.invalidate(0..u64::MAX, Which::Clean, true).kept == 0 && !file.may_be_dirty() {
                break;
            }
        }
        let bytes = self.shared.fs.block_bytes as usize;
        let mut expected = self.shared.snapshots.lock().unwrap();
        let blocks = self.model.now.len().div_ceil(bytes);
        for block in 0..blocks {
            if let Some(Block::Written(at)) = self.shared.fs.block(self.thread, block as u64) {
                let mut content = self.model.now[block * bytes..].to_vec();
                content.resize(bytes, 0);
                expected.insert(at, content);
            }
        }
        self.shared.fs.snapshot(self.thread);
    }

    /// A piece of one of this thread's stripes.
    fn piece(&mut self) -> (usize, usize) {
        let stripes = COMMON_BYTES / STRIPE / self.shared.threads;
        let stripe = self.rng.random_range(0..stripes) * self.shared.threads + self.thread;
        let from = self.rng.random_range(0..STRIPE);
        let len = self.rng.random_range(1..=STRIPE - from);
        (stripe * STRIPE + from, len)
    }

    fn write_common(&mut self) {
        let (pos, len) = self.piece();
        let data = self.data(len);
        self.common.write(pos, &data);
        let ino = self.shared.threads;
        let file = &self.shared.files[ino];
        // Cached bytes are overwritten without a lock.
        let done = if self.rng.random_bool(0.7) {
            file.write_hit(self.buffered.tally(), pos as u64, &data)
        } else {
            0
        };
        if done < len {
            let shared = self.shared;
            let _lock = shared.common_lock.lock().unwrap();
            self.write_all(ino, pos + done, &data[done..]);
        }
    }

    fn read_common(&mut self) {
        let (pos, len) = self.piece();
        let found = self.read_at(self.shared.threads, pos, len);
        assert_eq!(
            found,
            self.common.now[pos..pos + len],
            "the common file at {pos}"
        );
    }

    fn read_others(&mut self) {
        let ino = self.rng.random_range(0..=self.shared.threads);
        let (pos, len) = (self.rng.random_range(0..MOST_BYTES), self.length());
        if ino != self.thread {
            // What it reads is the other's; that it does is enough.
            self.read_at(ino, pos, len);
        }
    }

    fn sync_others(&mut self) {
        let ino = self.rng.random_range(0..=self.shared.threads);
        let file = &self.shared.files[ino];
        let cursor = &mut self.cursors[ino];
        self.buffered
            .sync(file, &mut self.ops[ino], 0..u64::MAX, cursor)
            .unwrap();
        if ino == self.thread {
            self.model.synced();
        }
        if ino == self.shared.threads {
            // What this thread wrote before is durable.
            self.common.synced();
        }
    }

    /// All of a file.
    pub(crate) fn whole(&mut self, ino: usize) -> Vec<u8> {
        let size = self.shared.files[ino].size_bytes() as usize;
        let found = self.read_at(ino, 0, size + 100);
        assert_eq!(found.len(), size);
        found
    }
}
