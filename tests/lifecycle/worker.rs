//! One thread of the campaign: what it does, in seeded order.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xtent::internals::block::Op;
use xtent::internals::units::Lba;
use xtent::target::Target;
use xtent::volume::{Advice, Done};
use xtent::{ErrorKind, Result};

use super::disk::{Disk, Pending, Seat};
use super::model::{Model, OWN, Place, SECTOR, SHARED};
use super::stand::{FILES, options};

const OPERATIONS: usize = 70;
const MOST_SECTORS: usize = 24;
/// Views that a thread leaks in a run: each keeps a page of the cache.
const MOST_LEAKED: usize = 4;

/// What a callback panics with.
pub(crate) struct Unlucky;

pub(crate) struct Worker<'a> {
    disks: &'a [Disk],
    thread: usize,
    rng: StdRng,
    models: Vec<Model>,
    /// The mount that each model is of.
    generations: Vec<u64>,
    seats: Vec<Seat<'a>>,
    leaked: usize,
    next_user_data: u64,
}

/// A thread's models of all disks, each with the number of the mount that it is of.
pub(crate) type Models = Vec<(Model, u64)>;

impl<'a> Worker<'a> {
    pub(crate) fn new(disks: &'a [Disk], thread: usize, seed: u64) -> Self {
        Self {
            disks,
            thread,
            rng: StdRng::seed_from_u64(seed ^ (thread as u64) << 56),
            models: disks.iter().map(|_| Model::new(thread)).collect(),
            generations: vec![0; disks.len()],
            seats: Vec::new(),
            leaked: 0,
            next_user_data: 0,
        }
    }

    /// Does its operations, waits for the others to have done theirs, and for faults to be over,
    /// and lets go of all.
    pub(crate) fn run(mut self, pause: &Barrier) -> Models {
        for _ in 0..OPERATIONS {
            self.step();
        }
        pause.wait();
        pause.wait();
        while let Some(seat) = self.seats.pop() {
            self.leave(seat);
        }
        self.models.into_iter().zip(self.generations).collect()
    }

    fn step(&mut self) {
        if self.seats.is_empty() || (self.seats.len() < 2 && self.rng.random_bool(0.05)) {
            return self.take_seat();
        }
        let at = self.rng.random_range(0..self.seats.len());
        // Taken out, so that the thread's other parts can be used beside it.
        let mut seat = self.seats.swap_remove(at);
        let stays = self.use_seat(&mut seat);
        if stays {
            self.seats.push(seat);
        } else {
            self.leave(seat);
        }
    }

    fn take_seat(&mut self) {
        let number = self.rng.random_range(0..self.disks.len());
        match Seat::take(self.disks, number) {
            Ok(seat) => {
                if self.generations[number] != seat.generation {
                    if self.generations[number] != 0 {
                        self.models[number].closed();
                    }
                    self.generations[number] = seat.generation;
                }
                self.seats.push(seat);
            }
            Err(error) => {
                let flaky = self.disks[number].is_flaky;
                let allowed = [ErrorKind::Busy, ErrorKind::OutOfMemory];
                assert!(flaky || allowed.contains(&error.kind()), "{error}");
                std::thread::yield_now();
            }
        }
    }

    /// What was in flight ends; of a write it is not known how.
    fn forget_pending(&mut self, seat: &mut Seat<'_>) {
        for pending in seat.pending.drain(..) {
            let model = &mut self.models[seat.number];
            model.set_busy(pending.place, false);
            if let Some(tag) = pending.tag {
                model.maybe(pending.place, tag);
            }
        }
    }

    fn leave(&mut self, mut seat: Seat<'_>) {
        self.forget_pending(&mut seat);
        // Or by another thread, later.
        if self.rng.random_bool(0.3) {
            seat.disk.unmount();
        }
    }

    /// One operation; false when the seat is to be left.
    fn use_seat(&mut self, seat: &mut Seat<'_>) -> bool {
        let before = self.rng.random_range(0..100);
        let result = match before {
            0..14 => self.read(seat),
            14..32 => self.write(seat),
            32..38 => self.read_direct(seat),
            38..46 => self.write_direct(seat),
            46..58 => self.submit(seat),
            58..66 => {
                self.poll(seat);
                Ok(())
            }
            66..73 => self.view(seat),
            73..82 => self.write_view(seat),
            82..87 => self.sync(seat),
            87..90 => self.advise(seat),
            90..92 => self.drop_io(seat),
            92..94 => self.read_ahead(seat),
            94..96 => self.mix_volumes(seat),
            96 => self.exhaust_pins(seat),
            97 => Self::raw(),
            _ => return false,
        };
        if let Err(error) = result {
            let allowed = [
                ErrorKind::Io,
                ErrorKind::Timeout,
                ErrorKind::DeviceGone,
                ErrorKind::Busy,
            ];
            // Memory is short by design.
            let fine = error.kind() == ErrorKind::OutOfMemory
                || (seat.disk.is_flaky && allowed.contains(&error.kind()));
            assert!(fine, "thread {}, operation {before}: {error}", self.thread);
        }
        true
    }

    /// A place with nothing in flight on it.
    fn place(&mut self, seat: &Seat<'_>, by_device: bool) -> Option<Place> {
        let files = if by_device { SHARED } else { FILES.len() };
        let file = self.rng.random_range(0..files);
        let count = match file {
            SHARED => 1,
            _ => self.rng.random_range(1..=MOST_SECTORS),
        };
        let first = self.rng.random_range(0..=OWN - count);
        let place = Place { file, first, count };
        (!self.models[seat.number].is_busy(place)).then_some(place)
    }

    fn read(&mut self, seat: &mut Seat<'_>) -> Result<()> {
        let Some(place) = self.place(seat, false) else {
            return Ok(());
        };
        let mut bytes = vec![0xee; place.len()];
        let offset = place.offset(self.thread);
        let n = seat.cached[place.file].read_at(&mut seat.io, &mut bytes, offset)?;
        self.models[seat.number].check(place, &bytes[..n], "read");
        Ok(())
    }

    fn write(&mut self, seat: &mut Seat<'_>) -> Result<()> {
        let Some(place) = self.place(seat, false) else {
            return Ok(());
        };
        let model = &mut self.models[seat.number];
        let (tag, bytes) = model.fresh(place);
        let offset = place.offset(self.thread);
        let result = seat.cached[place.file].write_at(&mut seat.io, &bytes, offset);
        model.wrote(place, tag, result)?;
        Ok(())
    }

    fn read_direct(&mut self, seat: &mut Seat<'_>) -> Result<()> {
        let Some(place) = self.place(seat, true) else {
            return Ok(());
        };
        let (file, offset) = (&seat.direct[place.file], place.offset(self.thread));
        if self.rng.random() {
            let mut bytes = vec![0xee; place.len()];
            let n = file.read_at(&mut seat.io, &mut bytes, offset)?;
            self.models[seat.number].check(place, &bytes[..n], "direct read by copy");
            return Ok(());
        }
        let mut buf = seat.io.alloc(place.len())?;
        let n = file.read_dma_at(&mut seat.io, &mut buf, offset)?;
        self.models[seat.number].check(place, &buf[..n], "direct read");
        Ok(())
    }

    fn write_direct(&mut self, seat: &mut Seat<'_>) -> Result<()> {
        let Some(place) = self.place(seat, true) else {
            return Ok(());
        };
        let model = &mut self.models[seat.number];
        let (tag, bytes) = model.fresh(place);
        let (file, offset) = (&seat.direct[place.file], place.offset(self.thread));
        let result = if self.rng.random() {
            file.write_at(&mut seat.io, &bytes, offset)
        } else {
            let mut buf = seat.io.alloc(place.len())?;
            buf.copy_from_slice(&bytes);
            file.write_dma_at(&mut seat.io, &mut buf, offset)
        };
        match result {
            Ok(n) if n == place.len() => model.on_device(place, tag),
            _ => model.maybe(place, tag),
        }
        result.map(drop)
    }

    fn submit(&mut self, seat: &mut Seat<'_>) -> Result<()> {
        let Some(place) = self.place(seat, true) else {
            return Ok(());
        };
        let mut buf = seat.io.alloc(place.len())?;
        let model = &mut self.models[seat.number];
        let (file, offset) = (&seat.direct[place.file], place.offset(self.thread));
        let user_data = self.next_user_data;
        self.next_user_data += 1;
        let tag = self.rng.random::<bool>().then(|| {
            let (tag, bytes) = model.fresh(place);
            buf.copy_from_slice(&bytes);
            tag
        });
        let submitted = match tag {
            Some(_) => seat.io.submit_write(file, offset, buf, user_data),
            None => seat.io.submit_read(file, offset, buf, user_data),
        };
        if let Err(error) = submitted {
            if seat.pending.len() == seat.io.depth() {
                return Ok(());
            }
            return Err(error.into());
        }
        model.set_busy(place, true);
        seat.pending.push(Pending {
            place,
            tag,
            user_data,
        });
        Ok(())
    }

    /// Polls a few times, with callbacks that panic now and then.
    fn poll(&mut self, seat: &mut Seat<'_>) {
        for _ in 0..self.rng.random_range(1..20) {
            let unlucky = self.rng.random_bool(0.2);
            let budget = self.rng.random_range(0..12);
            let before = seat.io.outstanding();
            assert_eq!(before, seat.pending.len(), "operations that did not end");
            let mut ended: Vec<Done> = Vec::new();
            let polled = catch_unwind(AssertUnwindSafe(|| {
                seat.io.poll(budget, |done| {
                    ended.push(done);
                    if unlucky {
                        std::panic::panic_any(Unlucky);
                    }
                })
            }));
            assert!(polled.is_err() || polled.is_ok_and(|count| count == ended.len()));
            assert_eq!(seat.io.outstanding(), before - ended.len());
            for done in ended {
                self.finish(seat, done);
            }
            seat.io.relax();
        }
    }

    fn finish(&mut self, seat: &mut Seat<'_>, done: Done) {
        let found = |pending: &Pending| pending.user_data == done.user_data;
        let at = seat.pending.iter().position(found).expect("ends once");
        let Pending { place, tag, .. } = seat.pending.swap_remove(at);
        let model = &mut self.models[seat.number];
        model.set_busy(place, false);
        match (tag, done.result) {
            (Some(tag), Ok(n)) if n == place.len() => model.on_device(place, tag),
            (Some(tag), result) => {
                assert!(seat.disk.is_flaky, "{result:?}");
                model.maybe(place, tag);
            }
            (None, Ok(n)) => model.check(place, &done.buf[..n], "submitted read"),
            (None, Err(error)) => assert!(seat.disk.is_flaky, "{error}"),
        }
    }

    fn may_leak(&mut self) -> bool {
        let leaks = self.leaked < MOST_LEAKED && self.rng.random_bool(0.1);
        self.leaked += usize::from(leaks);
        leaks
    }

    fn view(&mut self, seat: &mut Seat<'_>) -> Result<()> {
        let Some(place) = self.place(seat, false) else {
            return Ok(());
        };
        let leaks = self.may_leak();
        let model = &mut self.models[seat.number];
        let range = place.range(self.thread);
        let Some(view) = seat.cached[place.file].view(&mut seat.io, range)? else {
            panic!("inside of the file");
        };
        model.check(place, &view, "view");
        // It keeps what it saw.
        let before = view.to_vec();
        let (tag, bytes) = model.fresh(place);
        let offset = place.offset(self.thread);
        let result = seat.cached[place.file].write_at(&mut seat.io, &bytes, offset);
        model.wrote(place, tag, result)?;
        assert!(view[..] == before, "a view changed");
        if leaks {
            std::mem::forget(view);
        }
        Ok(())
    }

    /// Writes to a mutable view, and to its page beside it.
    fn write_view(&mut self, seat: &mut Seat<'_>) -> Result<()> {
        let Some(place) = self.place(seat, false) else {
            return Ok(());
        };
        // A direct write would wait for a leaked one: only where there are none.
        let leaks = place.file == SHARED && self.may_leak();
        let range = place.range(self.thread);
        let file = seat.cached[place.file].clone();
        let Some(mut view) = file.view_mut(&mut seat.io, range)? else {
            panic!("inside of the file");
        };
        let model = &mut self.models[seat.number];
        let place = Place {
            count: view.len() / SECTOR,
            ..place
        };
        model.check(place, &view, "mutable view");
        let (tag, bytes) = model.fresh(place);
        view.copy_from_slice(&bytes);
        let mut result = Ok(());
        for _ in 0..self.rng.random_range(0..3) {
            let beside = Place {
                first: (place.first + self.rng.random_range(place.count..8 + place.count)) % OWN,
                count: 1,
                ..place
            };
            let inside = place.first..place.first + place.count;
            if inside.contains(&beside.first) || self.models[seat.number].is_busy(beside) {
                continue;
            }
            result = result.and(match self.rng.random_range(0..4) {
                0 => file.sync_data(&mut seat.io),
                1 => file.advise(&mut seat.io, 0..u64::MAX, Advice::DontNeed),
                _ => {
                    let model = &mut self.models[seat.number];
                    let (tag, bytes) = model.fresh(beside);
                    let offset = beside.offset(self.thread);
                    let written = file.write_at(&mut seat.io, &bytes, offset);
                    model.wrote(beside, tag, written)
                }
            });
        }
        if leaks {
            std::mem::forget(view);
        } else {
            drop(view);
            self.models[seat.number].cached(place, tag);
        }
        result
    }

    fn sync(&mut self, seat: &mut Seat<'_>) -> Result<()> {
        let model = &mut self.models[seat.number];
        if self.rng.random_bool(0.3) {
            seat.volume.sync(&mut seat.io)?;
            // Of syncs of a volume one tells a failure, for all of them.
            if !seat.disk.is_flaky {
                (0..FILES.len()).for_each(|file| model.synced(file));
            }
            return Ok(());
        }
        let file = self.rng.random_range(0..FILES.len());
        seat.cached[file].sync_data(&mut seat.io)?;
        model.synced(file);
        Ok(())
    }

    fn advise(&mut self, seat: &mut Seat<'_>) -> Result<()> {
        let file = self.rng.random_range(0..FILES.len());
        let advice = if self.rng.random() {
            Advice::DontNeed
        } else {
            Advice::WillNeed
        };
        seat.cached[file].advise(&mut seat.io, 0..u64::MAX, advice)
    }

    /// Drops the handle with all that is in flight on it, and takes another.
    fn drop_io(&mut self, seat: &mut Seat<'_>) -> Result<()> {
        let io = seat.volume.io()?;
        drop(std::mem::replace(&mut seat.io, io));
        self.forget_pending(seat);
        Ok(())
    }

    /// Reads a part by a reader that reads ahead, and drops it in the middle.
    fn read_ahead(&mut self, seat: &mut Seat<'_>) -> Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let Some(place) = self.place(seat, true) else {
            return Ok(());
        };
        let mut reader = seat.direct[place.file].reader(&mut seat.io)?;
        let mut bytes = vec![0xee; place.len()];
        let offset = place.offset(self.thread);
        let read = reader
            .seek(SeekFrom::Start(offset))
            .and_then(|_| reader.read_exact(&mut bytes));
        drop(reader);
        match read {
            Ok(()) => self.models[seat.number].check(place, &bytes, "reader"),
            Err(error) => {
                let short = error.kind() == std::io::ErrorKind::OutOfMemory;
                assert!(short || seat.disk.is_flaky, "{error}");
            }
        }
        Ok(())
    }

    /// Handles of one volume with those of another.
    fn mix_volumes(&mut self, seat: &mut Seat<'_>) -> Result<()> {
        let mut dir = seat.volume.read_dir(&mut seat.io, "/")?;
        let entry = dir.next_entry(&mut seat.io)?;
        let other = self
            .seats
            .iter_mut()
            .find(|other| other.number != seat.number);
        if let (Some(entry), Some(other)) = (entry, other) {
            let errors = [
                entry.metadata(&mut other.io).err(),
                dir.next_entry(&mut other.io).err(),
                seat.cached[0].sync_data(&mut other.io).err(),
                seat.direct[0].read_at(&mut other.io, &mut [0], 0).err(),
            ];
            for error in errors {
                let kind = error.expect("of another volume").kind();
                assert_eq!(kind, ErrorKind::InvalidInput);
            }
        }
        Ok(())
    }

    /// More views of a page than its word counts, while it is dirty.
    fn exhaust_pins(&mut self, seat: &mut Seat<'_>) -> Result<()> {
        let place = Place {
            file: SHARED,
            first: self.rng.random_range(0..OWN),
            count: 1,
        };
        let range = place.range(self.thread);
        let mut views = Vec::new();
        for _ in 0..2100 {
            views.push(seat.cached[SHARED].view(&mut seat.io, range.clone())?);
        }
        let model = &mut self.models[seat.number];
        let (tag, bytes) = model.fresh(place);
        let result = seat.cached[SHARED].write_at(&mut seat.io, &bytes, range.start);
        model.wrote(place, tag, result)?;
        seat.cached[SHARED].sync_data(&mut seat.io)?;
        model.synced(SHARED);
        let view = seat.cached[SHARED].view(&mut seat.io, range)?;
        model.check(place, &view.expect("inside of the file"), "view of many");
        Ok(())
    }

    /// A target without a filesystem, a callback that panics, and an end with operations in flight.
    fn raw() -> Result<()> {
        let target = Target::open("ram:1M,inline", &options().0)?;
        let mut raw = target.raw(4, 4096)?;
        (0..4).try_for_each(|slot| raw.submit(slot, Op::Read, Lba(slot as u64 * 8)))?;
        let mut left = 4;
        for _ in 0..10 {
            let before = raw.outstanding();
            let polled = catch_unwind(AssertUnwindSafe(|| {
                raw.poll(|slot, status| {
                    assert!(status.is_success());
                    left -= 1;
                    if slot == 1 {
                        std::panic::panic_any(Unlucky);
                    }
                })
            }));
            assert_eq!(raw.outstanding(), left);
            assert!(polled.is_err() || before == left + polled.unwrap_or(0));
            raw.relax();
        }
        raw.submit(0, Op::Write, Lba(0))
    }
}
