//! A disk that threads mount and unmount, and how one of them uses it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use xtent::internals::device::emu::{EmuDevice, FaultPlan};
use xtent::target::TargetOptions;
use xtent::volume::{File, Io, MountOptions, Volume};
use xtent::{Error, ErrorKind, Result};

use super::model::Place;
use super::stand::{FILES, buffered, device, direct, open};

/// A controller, and its volume while that is mounted.
pub(crate) struct Disk {
    pub(crate) device: Arc<EmuDevice>,
    options: (TargetOptions, MountOptions),
    /// Something may fail.
    pub(crate) is_flaky: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    mounted: Option<(Volume, Arc<()>)>,
    /// Lives while anything of the last mount does.
    token: Weak<()>,
    /// Counts mounts.
    generation: u64,
}

impl Disk {
    pub(crate) fn new(faults: FaultPlan, options: (TargetOptions, MountOptions)) -> Self {
        Self {
            is_flaky: !faults.rates.is_empty() || !faults.rules.is_empty(),
            device: device(faults),
            options,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The volume, mounted where it is not, with its token and the number of the mount.
    fn mount(&self) -> Result<(Arc<()>, Volume, u64)> {
        let mut state = self.state();
        if let Some((volume, token)) = &state.mounted {
            return Ok((Arc::clone(token), volume.clone(), state.generation));
        }
        if state.token.strong_count() > 0 {
            return Err(Error::new(ErrorKind::Busy, "not all has gone yet"));
        }
        let volume = open(&self.device, &self.options)?;
        let token = Arc::new(());
        state.token = Arc::downgrade(&token);
        state.generation += 1;
        state.mounted = Some((volume.clone(), Arc::clone(&token)));
        Ok((token, volume, state.generation))
    }

    /// Drops this handle of the volume; its other users continue.
    pub(crate) fn unmount(&self) {
        let mounted = self.state().mounted.take();
        drop(mounted);
    }

    /// Whether anything of the last mount lives, and its number.
    pub(crate) fn is_alive(&self) -> (bool, u64) {
        let state = self.state();
        (state.token.strong_count() > 0, state.generation)
    }
}

/// An operation that was submitted.
pub(crate) struct Pending {
    pub(crate) place: Place,
    /// Of a write.
    pub(crate) tag: Option<u64>,
    pub(crate) user_data: u64,
}

/// What a thread has of a disk. It goes in this order.
pub(crate) struct Seat<'a> {
    pub(crate) io: Io,
    pub(crate) pending: Vec<Pending>,
    pub(crate) cached: Vec<File>,
    pub(crate) direct: Vec<File>,
    pub(crate) volume: Volume,
    _token: Arc<()>,
    pub(crate) disk: &'a Disk,
    pub(crate) number: usize,
    pub(crate) generation: u64,
}

impl<'a> Seat<'a> {
    pub(crate) fn take(disks: &'a [Disk], number: usize) -> Result<Self> {
        let disk = &disks[number];
        // Should this fail, the token goes last: the volume may be closed by that.
        let (token, volume, generation) = disk.mount()?;
        let mut io = volume.io()?;
        let mut files = |open: fn(&Volume, &mut Io, &str) -> Result<File>| {
            let files = FILES.iter().map(|name| open(&volume, &mut io, name));
            files.collect::<Result<Vec<_>>>()
        };
        let (cached, direct) = (files(buffered)?, files(direct)?);
        Ok(Self {
            io,
            pending: Vec::new(),
            cached,
            direct,
            volume,
            _token: token,
            disk,
            number,
            generation,
        })
    }
}
