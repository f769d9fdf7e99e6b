//! Regions of a served device: the registers of BAR 0, mapped where the server offers it, and the
//! configuration space.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::client::{Connection, MOST_REPLY_FDS, VfioUserRequest};
use super::wire::{self, REGION_BAR0, REGION_CONFIG, REGION_MMAP, REGION_READ_WRITE};
use crate::device::vfio::{Bar, VfioRegion};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::Doorbell;
use crate::sys::{PeerFds, is_local_file};

/// Bytes of a reply that fit every description of a region seen so far; a longer one is asked for
/// again.
const INFO_BYTES: usize = 1024;
/// The longest description that is taken.
const MOST_INFO_BYTES: usize = 16 << 10;

/// Offset of the command register in the configuration space.
const PCI_COMMAND: u64 = 4;
/// Offset of revision, programming interface, subclass and class.
const PCI_CLASS: u64 = 8;
/// Mass storage, non-volatile memory, NVM Express.
const CLASS_NVME: u32 = 0x01_0802;
/// The device answers to accesses of its BARs, interrupts only by message, and may (or not) access
/// memory.
const PCI_COMMAND_QUIET: u16 = 1 << 1 | 1 << 10;
const PCI_COMMAND_MASTER: u16 = 1 << 2;

/// BAR 0 and the configuration space.
#[derive(Debug)]
pub(super) struct VfioUserRegisters {
    connection: Arc<Connection>,
    /// One for each part of BAR 0 that is mapped.
    bars: Vec<Arc<Bar>>,
    bar0_bytes: u64,
}

impl VfioUserRegisters {
    /// Asks for the regions, and sees that this is an NVMe controller.
    pub(super) fn open(connection: &Arc<Connection>) -> Result<Self> {
        let (bar0, files) = describe(connection, REGION_BAR0)?;
        let (config, _) = describe(connection, REGION_CONFIG)?;
        if config.len_bytes < 64 || config.flags & REGION_READ_WRITE != REGION_READ_WRITE {
            return Err(unsupported("it has no configuration space"));
        }
        if bar0.len_bytes < 0x1008 || bar0.flags & REGION_READ_WRITE != REGION_READ_WRITE {
            return Err(unsupported("its BAR 0 is too small for NVMe registers"));
        }
        let registers = Self {
            connection: Arc::clone(connection),
            bars: map(&bar0, &files)?,
            bar0_bytes: bar0.len_bytes,
        };
        let class = u32::from_le_bytes(registers.read(REGION_CONFIG, PCI_CLASS)?) >> 8;
        if class != CLASS_NVME {
            let detail = format!("its class is {class:#08x}, and not that of an NVMe controller");
            return Err(unsupported(&detail));
        }
        registers.set_master(false)?;
        Ok(registers)
    }

    /// The doorbell at a register offset, if it is mapped.
    pub(super) fn doorbell(&self, offset: u32) -> Option<Doorbell> {
        self.bars.iter().find_map(|bar| bar.doorbell(offset))
    }

    /// Whether the server took mapped memory away.
    pub(super) fn vanished(&self) -> bool {
        self.bars.iter().any(|bar| bar.vanished())
    }

    /// Reads a register; `None` without an answer.
    pub(super) fn read32(&self, offset: u32) -> Option<u32> {
        match self.bars.iter().find_map(|bar| bar.read32(offset)) {
            Some(value) => Some(value),
            None => self
                .read(REGION_BAR0, offset.into())
                .ok()
                .map(u32::from_le_bytes),
        }
    }

    /// Reads a 64-bit register, in one access; `None` without an answer.
    pub(super) fn read64(&self, offset: u32) -> Option<u64> {
        self.read(REGION_BAR0, offset.into())
            .ok()
            .map(u64::from_le_bytes)
    }

    /// Writes a register. A failure shows in what the controller does next, or in the connection.
    pub(super) fn write32(&self, offset: u32, value: u32) {
        if !self
            .bars
            .iter()
            .any(|bar| bar.write32(offset, value).is_some())
        {
            let _ = self.write(REGION_BAR0, offset.into(), &value.to_le_bytes());
        }
    }

    pub(super) fn write64(&self, offset: u32, value: u64) {
        let _ = self.write(REGION_BAR0, offset.into(), &value.to_le_bytes());
    }

    /// Lets the device access memory, or not.
    pub(super) fn set_master(&self, on: bool) -> Result<()> {
        let master = if on { PCI_COMMAND_MASTER } else { 0 };
        let command = PCI_COMMAND_QUIET | master;
        self.write(REGION_CONFIG, PCI_COMMAND, &command.to_le_bytes())
    }

    fn read<const N: usize>(&self, region: u32, offset: u64) -> Result<[u8; N]> {
        let access = access(region, offset, N);
        let head = size_of::<wire::RegionAccess>();
        let reply = self.connection.request(&VfioUserRequest {
            command: wire::REGION_READ,
            payload: &[access.as_bytes()],
            reply_bytes: head + N..=head + N,
            ..VfioUserRequest::default()
        })?;
        self.check(&access, &reply.payload)?
            .try_into()
            .map_err(|_| unsupported("a reply is too short"))
    }

    fn write(&self, region: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        let access = access(region, offset, bytes.len());
        let head = size_of::<wire::RegionAccess>();
        let reply = self.connection.request(&VfioUserRequest {
            command: wire::REGION_WRITE,
            payload: &[access.as_bytes(), bytes],
            reply_bytes: head..=head,
            ..VfioUserRequest::default()
        })?;
        self.check(&access, &reply.payload).map(drop)
    }

    /// The data of a reply to this very access. A server that answers another one is not believed
    /// any more.
    fn check<'a>(&self, asked: &wire::RegionAccess, reply: &'a [u8]) -> Result<&'a [u8]> {
        match wire::split::<wire::RegionAccess>(reply) {
            Some((done, data)) if done.as_bytes() == asked.as_bytes() => Ok(data),
            _ => {
                let why = "the server answered to another access than was asked for";
                self.connection.cut(why);
                Err(Error::new(ErrorKind::DeviceGone, why))
            }
        }
    }

    /// Bytes of BAR 0.
    pub(super) fn bar0_bytes(&self) -> u64 {
        self.bar0_bytes
    }
}

fn access(region: u32, offset: u64, count: usize) -> wire::RegionAccess {
    wire::RegionAccess {
        offset_bytes: offset.into(),
        region: region.into(),
        count_bytes: u32::try_from(count).unwrap_or(u32::MAX).into(),
    }
}

/// The description of a region, and the files that came with it.
fn describe(connection: &Connection, index: u32) -> Result<(VfioRegion, PeerFds)> {
    let mut room = INFO_BYTES;
    loop {
        let request = wire::RegionInfo {
            argsz: u32::try_from(room).unwrap_or(u32::MAX).into(),
            index: index.into(),
            ..wire::RegionInfo::default()
        };
        let reply = connection.request(&VfioUserRequest {
            command: wire::GET_REGION_INFO,
            payload: &[request.as_bytes()],
            reply_bytes: size_of::<wire::RegionInfo>()..=room,
            reply_fds: MOST_REPLY_FDS,
            ..VfioUserRequest::default()
        })?;
        let said = wire::split::<wire::RegionInfo>(&reply.payload).map(|(info, _)| *info);
        let needs = said.map_or(0, |info| info.argsz.get() as usize);
        if needs > room && room < MOST_INFO_BYTES {
            room = needs.min(MOST_INFO_BYTES);
            continue;
        }
        let same = said.is_some_and(|info| info.index.get() == index);
        let region = VfioRegion::parse(&reply.payload).filter(|_| same);
        let region = region.ok_or_else(|| unsupported("a region's description makes no sense"))?;
        return Ok((region, reply.fds));
    }
}

/// Maps the parts of BAR 0 that the server offers: one file for all, or one for each.
fn map(region: &VfioRegion, files: &[OwnedFd]) -> Result<Vec<Arc<Bar>>> {
    if region.flags & REGION_MMAP == 0 {
        return Ok(Vec::new());
    }
    let whole = vec![(0, region.len_bytes)];
    let areas = region.sparse.as_ref().unwrap_or(&whole);
    if areas.len() > MOST_REPLY_FDS || files.is_empty() {
        return Err(unsupported(
            "BAR 0 can be mapped, as the server says, but it sends no file to map",
        ));
    }
    if files.len() != 1 && files.len() != areas.len() {
        return Err(unsupported(
            "the server sends another number of files than BAR 0 has parts to map",
        ));
    }
    // Before any other call: on a file of another filesystem each may wait for the server for ever.
    if !files.iter().all(is_local_file) {
        return Err(unsupported(
            "the file of BAR 0 is neither memory nor a file of a local filesystem",
        ));
    }
    let mut bars = Vec::new();
    for (at, area) in areas.iter().enumerate() {
        let Some(file) = files.get(at).or_else(|| files.first()) else {
            continue;
        };
        let part = VfioRegion {
            sparse: Some(vec![*area]),
            ..region.clone()
        };
        let failed = |e| Error::system("cannot map a part of BAR 0", e);
        let file = File::from(file.try_clone().map_err(failed)?);
        check_length(&file, region, *area)?;
        let bar = Bar::map(&file, &part).map_err(failed)?;
        bars.push(Arc::new(bar));
    }
    Ok(bars)
}

/// A mapping past the end of a file would fault at the first access.
fn check_length(file: &File, region: &VfioRegion, (offset, len_bytes): (u64, u64)) -> Result<()> {
    let size = file
        .metadata()
        .map_err(|e| Error::system("cannot find the length of BAR 0's file", e))?
        .len();
    let end = region
        .offset
        .checked_add(offset)
        .and_then(|at| at.checked_add(len_bytes));
    if end.is_some_and(|end| end <= size) {
        return Ok(());
    }
    Err(unsupported("BAR 0 reaches past the end of its file"))
}

fn unsupported(detail: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("the server's device cannot be driven: {detail}"),
    )
}
