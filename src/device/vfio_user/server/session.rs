//! One client: its messages, answered one by one.

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use zerocopy::IntoBytes;

use super::config_space::{self, ConfigSpace};
use super::irq;
use super::layout::{MSIX_ENTRY_BYTES, RegionLayout};
use super::memory::{ClientMaps, Refusal};
use super::reply::{Errno, Reply};
use super::{ServerEvent, ServerOptions};
use crate::device::Device;
use crate::device::emu::EmuDevice;
use crate::device::vfio_user::stream::{self, Bounds, Disconnected, Message, NAP};
use crate::device::vfio_user::wire::{self, MessageHeader, PeerCapabilities};
use crate::mem::{DmaSpace, DoorbellArray};
use crate::nvme::spec::REG_DOORBELLS;

/// Bytes of one access of a region, at most.
const MOST_ACCESS_BYTES: usize = 4096;
/// The longest payload of a message: an access, or a request with room for its answer, as SPDK's
/// host sends it.
const MOST_PAYLOAD_BYTES: usize = 8192;
/// Descriptors of one message: interrupts come one by one or in bundles.
const MOST_FDS: usize = 16;

/// Refusals to map memory that are told of one client.
const MOST_TOLD: u32 = 8;

/// One client.
pub(super) struct Session<'a> {
    device: &'a Arc<EmuDevice>,
    /// Made for this client alone.
    doorbells: Arc<DoorbellArray>,
    socket: &'a UnixStream,
    go_on: &'a dyn Fn() -> bool,
    tell: &'a mut dyn FnMut(ServerEvent),
    /// Refusals that were told.
    told: u32,
    layout: RegionLayout,
    config: ConfigSpace,
    /// The table of MSI-X: kept for the client, which connects its interrupts by message.
    msix_table: Vec<u8>,
    maps: ClientMaps,
    map_doorbells: bool,
    bounds: Bounds,
    looked: Instant,
}

impl Drop for Session<'_> {
    /// Takes back everything that the client had, also when serving it panics.
    fn drop(&mut self) {
        self.device.forget_host();
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl<'a> Session<'a> {
    pub(super) fn new(
        device: &'a Arc<EmuDevice>,
        socket: &'a UnixStream,
        options: &ServerOptions,
        go_on: &'a dyn Fn() -> bool,
        tell: &'a mut dyn FnMut(ServerEvent),
    ) -> Result<Self, Disconnected> {
        // Also where the end of the session before this one was cut short.
        device.forget_host();
        // What a client before this one may still have mapped rings nothing from here on.
        let doorbells = device
            .new_doorbells()
            .map_err(|_| Disconnected::Broken("there is no memory for its doorbells"))?;
        let failed = |_| Disconnected::Broken("its socket cannot be set up");
        socket.set_nonblocking(false).map_err(failed)?;
        stream::prepare(socket).map_err(failed)?;
        let layout = RegionLayout::of_device(device, &doorbells)
            .ok_or(Disconnected::Broken("there is no room in the BAR"))?;
        let table = u32::from(layout.vectors) * MSIX_ENTRY_BYTES;
        let map_doorbells = options.map_doorbells && doorbells.file().is_some();
        Ok(Self {
            device,
            doorbells,
            socket,
            go_on,
            tell,
            told: 0,
            config: layout.config_space(),
            msix_table: vec![0; table as usize],
            layout,
            maps: ClientMaps::new(options),
            map_doorbells,
            bounds: Bounds {
                payload_bytes: MOST_PAYLOAD_BYTES,
                fds: MOST_FDS,
                patience: options.patience,
            },
            looked: Instant::now(),
        })
    }

    /// Talks with the client until it leaves, breaks something, or `go_on` is false.
    pub(super) fn run(&mut self) -> Disconnected {
        if let Err(cut) = self.negotiate() {
            return cut;
        }
        loop {
            let next = self.receive().and_then(|message| self.answer(&message));
            if let Err(cut) = next {
                return cut;
            }
        }
    }

    fn receive(&mut self) -> Result<Message, Disconnected> {
        let (socket, bounds, go_on) = (self.socket, self.bounds, self.go_on);
        let mut lost = false;
        let message = stream::receive(socket, &bounds, || {
            lost = self.lost_memory();
            !lost && go_on()
        });
        match message {
            Err(Disconnected::Stopped) if lost => Err(Disconnected::Broken("its memory went away")),
            other => other,
        }
    }

    /// Whether an access of the device has found the client's memory gone. Looked at now and then.
    fn lost_memory(&mut self) -> bool {
        if self.looked.elapsed() < NAP / 2 {
            return false;
        }
        self.looked = Instant::now();
        self.device.change_memory(DmaSpace::lost_peer_memory)
    }

    /// The first message says who the client is, and comes soon.
    fn negotiate(&mut self) -> Result<(), Disconnected> {
        let go_on = self.go_on;
        let deadline = Instant::now() + self.bounds.patience;
        let message = stream::receive(self.socket, &self.bounds, || {
            go_on() && Instant::now() < deadline
        })?;
        let header = message.header;
        if !header.is_command() || header.command.get() != wire::VERSION || !message.fds.is_empty()
        {
            return Err(Disconnected::Broken("it did not begin with its version"));
        }
        let Some((version, text)) = wire::split::<wire::VersionMessage>(&message.payload) else {
            self.refuse(&header, libc::EINVAL)?;
            return Err(Disconnected::Broken("its version is too short"));
        };
        if version.major.get() != wire::MAJOR {
            self.refuse(&header, libc::EPROTONOSUPPORT)?;
            return Err(Disconnected::Broken(
                "it speaks another version of the protocol",
            ));
        }
        if let Err(why) = PeerCapabilities::parse(text) {
            self.refuse(&header, libc::EINVAL)?;
            return Err(Disconnected::Broken(why));
        }
        let own = PeerCapabilities {
            max_msg_fds: MOST_FDS as u64,
            max_data_xfer_size: MOST_ACCESS_BYTES as u64,
            max_dma_maps: ClientMaps::MOST as u64,
        };
        let agreed = wire::VersionMessage {
            major: wire::MAJOR.into(),
            minor: version.minor.get().min(wire::MINOR).into(),
        };
        self.reply(&header, &Reply::of(&agreed).and(&own.text()))
    }

    fn answer(&mut self, message: &Message) -> Result<(), Disconnected> {
        let header = message.header;
        if !header.is_command() {
            return Err(Disconnected::Broken("it answered what it was not asked"));
        }
        match self.execute(message) {
            Ok(_) | Err(_) if header.wants_no_reply() => Ok(()),
            Ok(reply) => self.reply(&header, &reply),
            Err(errno) => self.refuse(&header, errno),
        }
    }

    fn reply(&self, header: &MessageHeader, reply: &Reply) -> Result<(), Disconnected> {
        let len = u32::try_from(reply.bytes.len()).unwrap_or(u32::MAX);
        let header = MessageHeader::reply(header.id.get(), header.command.get(), len);
        let doorbells = self.doorbells.file().map(|file| file.as_fd());
        let fds = if reply.with_doorbells {
            doorbells.as_slice()
        } else {
            &[]
        };
        self.send(&header, &[&reply.bytes], fds)
    }

    fn send(
        &self,
        header: &MessageHeader,
        payload: &[&[u8]],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Disconnected> {
        let message = (header, payload, fds);
        stream::send(self.socket, message, self.bounds.patience, self.go_on)
    }

    fn refuse(&self, header: &MessageHeader, errno: Errno) -> Result<(), Disconnected> {
        let (id, command) = (header.id.get(), header.command.get());
        let header = MessageHeader::error_reply(id, command, errno.unsigned_abs());
        self.send(&header, &[], &[])
    }

    fn execute(&mut self, message: &Message) -> Result<Reply, Errno> {
        let payload = &message.payload[..];
        match message.header.command.get() {
            wire::DMA_MAP => {
                let done = self.maps.map(self.device, payload, &message.fds);
                done.map_err(|refusal| self.refused(refusal))
            }
            wire::DMA_UNMAP => self.maps.unmap(self.device, payload),
            wire::GET_INFO => device_info(payload),
            wire::GET_REGION_INFO => self.region_info(payload),
            wire::GET_IRQ_INFO => self.irq_info(payload),
            wire::SET_IRQS => irq::set(self.device, payload, &message.fds),
            wire::REGION_READ => self.region_read(payload),
            wire::REGION_WRITE => self.region_write(payload),
            wire::RESET => self.reset(),
            // The version is agreed on once.
            wire::VERSION => Err(libc::EINVAL),
            _ => Err(libc::EOPNOTSUPP),
        }
    }

    fn refused(&mut self, refusal: Refusal) -> Errno {
        if self.told < MOST_TOLD {
            self.told += 1;
            (self.tell)(ServerEvent::MapRefused {
                address: refusal.address,
                len_bytes: refusal.len_bytes,
                why: refusal.why,
                errno: refusal.errno,
            });
        }
        refusal.errno
    }

    fn region_info(&self, payload: &[u8]) -> Result<Reply, Errno> {
        let (asked, _) = wire::split::<wire::RegionInfo>(payload).ok_or(libc::EINVAL)?;
        let (index, room) = (asked.index.get(), asked.argsz.get() as usize);
        let mut info = wire::RegionInfo {
            argsz: 32.into(),
            index: index.into(),
            ..wire::RegionInfo::default()
        };
        if index >= wire::REGIONS || room < size_of::<wire::RegionInfo>() {
            return Err(libc::EINVAL);
        }
        if index == wire::REGION_CONFIG {
            info.flags = wire::REGION_READ_WRITE.into();
            info.len_bytes = (config_space::BYTES as u64).into();
        }
        if index != wire::REGION_BAR0 {
            return Ok(Reply::of(&info));
        }
        info.len_bytes = u64::from(self.layout.bar0_bytes).into();
        info.flags = wire::REGION_READ_WRITE.into();
        if !self.map_doorbells {
            return Ok(Reply::of(&info));
        }
        let area = wire::SparseArea {
            id: wire::CAP_SPARSE_MMAP.into(),
            version: 1.into(),
            next: 0.into(),
            areas: 1.into(),
            reserved: 0.into(),
            offset_bytes: u64::from(REG_DOORBELLS).into(),
            len_bytes: u64::from(self.layout.doorbell_bytes).into(),
        };
        let whole = size_of::<wire::RegionInfo>() + size_of::<wire::SparseArea>();
        info.flags = (wire::REGION_READ_WRITE | wire::REGION_MMAP | wire::REGION_CAPS).into();
        info.argsz = u32::try_from(whole).unwrap_or(u32::MAX).into();
        // Even where there is no room for them: QEMU takes a flag without an offset for an error.
        info.cap_offset = 32.into();
        if room < whole {
            // It may ask again, with more room.
            return Ok(Reply::of(&info));
        }
        Ok(Reply {
            with_doorbells: true,
            ..Reply::of(&info).and(area.as_bytes())
        })
    }

    fn irq_info(&self, payload: &[u8]) -> Result<Reply, Errno> {
        let (asked, _) = wire::split::<wire::IrqInfo>(payload).ok_or(libc::EINVAL)?;
        let index = asked.index.get();
        if index >= wire::IRQS || (asked.argsz.get() as usize) < size_of::<wire::IrqInfo>() {
            return Err(libc::EINVAL);
        }
        let msix = index == wire::IRQ_MSIX;
        Ok(Reply::of(&wire::IrqInfo {
            argsz: 16.into(),
            flags: if msix { wire::IRQ_EVENTFD } else { 0 }.into(),
            index: index.into(),
            count: if msix { self.layout.vectors.into() } else { 0 }.into(),
        }))
    }

    fn region_read(&self, payload: &[u8]) -> Result<Reply, Errno> {
        let (access, _) = wire::split::<wire::RegionAccess>(payload).ok_or(libc::EINVAL)?;
        let (offset, count) = self.range(access)?;
        let reply = Reply::of(access);
        if access.region.get() == wire::REGION_CONFIG {
            let bytes = self.config.read(offset, count).ok_or(libc::EINVAL)?;
            return Ok(reply.and(bytes));
        }
        let offset = u32::try_from(offset).map_err(|_| libc::EINVAL)?;
        if offset < REG_DOORBELLS {
            return Ok(reply.and(
                self.read_registers(offset, count)?
                    .get(..count)
                    .unwrap_or(&[]),
            ));
        }
        let table = offset
            .checked_sub(self.layout.msix)
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| self.msix_table.get(at..at.checked_add(count)?));
        // Doorbells are for writing, no interrupt is pending, and the rest is nothing.
        Ok(match table {
            Some(bytes) => reply.and(bytes),
            None => reply.and(&vec![0; count]),
        })
    }

    /// Registers are read in pieces that lie within one of them.
    fn read_registers(&self, offset: u32, count: usize) -> Result<[u8; 8], Errno> {
        let within = (offset % 8) as usize + count <= 8;
        if !within || !count.is_power_of_two() || !(offset as usize).is_multiple_of(count) {
            return Err(libc::EINVAL);
        }
        let value = if count == 8 {
            self.device.read64(offset)
        } else {
            let word = self.device.read32(offset & !3);
            u64::from(word >> (8 * (offset % 4)))
        };
        Ok(value.to_le_bytes())
    }

    fn region_write(&mut self, payload: &[u8]) -> Result<Reply, Errno> {
        let (access, data) = wire::split::<wire::RegionAccess>(payload).ok_or(libc::EINVAL)?;
        let (offset, count) = self.range(access)?;
        if data.len() != count {
            return Err(libc::EINVAL);
        }
        let reply = Reply::of(access);
        if access.region.get() == wire::REGION_CONFIG {
            if self.config.write(offset, data).ok_or(libc::EINVAL)? {
                self.reset()?;
            }
            return Ok(reply);
        }
        let offset = u32::try_from(offset).map_err(|_| libc::EINVAL)?;
        let end_of_doorbells = REG_DOORBELLS + self.layout.doorbell_bytes;
        if offset < end_of_doorbells {
            self.write_registers(offset, data)?;
            return Ok(reply);
        }
        let table = offset
            .checked_sub(self.layout.msix)
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| self.msix_table.get_mut(at..at.checked_add(count)?));
        if let Some(bytes) = table {
            bytes.copy_from_slice(data);
        }
        Ok(reply)
    }

    fn write_registers(&self, offset: u32, data: &[u8]) -> Result<(), Errno> {
        if let Ok(bytes) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.device.write32(offset, u32::from_le_bytes(bytes));
            return Ok(());
        }
        if let Ok(bytes) = <[u8; 8]>::try_from(data)
            && offset.is_multiple_of(8)
            && offset < REG_DOORBELLS
        {
            self.device.write64(offset, u64::from_le_bytes(bytes));
            return Ok(());
        }
        Err(libc::EINVAL)
    }

    /// An access that lies inside of its region: offset and length.
    fn range(&self, access: &wire::RegionAccess) -> Result<(u64, usize), Errno> {
        let (offset, count) = (access.offset_bytes.get(), access.count_bytes.get());
        let region_bytes = match access.region.get() {
            wire::REGION_BAR0 => u64::from(self.layout.bar0_bytes),
            wire::REGION_CONFIG => config_space::BYTES as u64,
            _ => 0,
        };
        let inside = offset
            .checked_add(count.into())
            .is_some_and(|end| end <= region_bytes);
        if !inside || count == 0 || count as usize > MOST_ACCESS_BYTES {
            return Err(libc::EINVAL);
        }
        Ok((offset, count as usize))
    }

    /// All is as after power-on, but for the client's memory and the event counters it connected.
    fn reset(&mut self) -> Result<Reply, Errno> {
        self.device.stop_dma().map_err(|_| libc::EIO)?;
        self.config = self.layout.config_space();
        self.msix_table.fill(0);
        Ok(Reply::default())
    }
}

fn device_info(payload: &[u8]) -> Result<Reply, Errno> {
    let (asked, _) = wire::split::<wire::DeviceInfo>(payload).ok_or(libc::EINVAL)?;
    if (asked.argsz.get() as usize) < size_of::<wire::DeviceInfo>() {
        return Err(libc::EINVAL);
    }
    Ok(Reply::of(&wire::DeviceInfo {
        argsz: 16.into(),
        flags: (wire::DEVICE_RESET | wire::DEVICE_PCI).into(),
        regions: wire::REGIONS.into(),
        irqs: wire::IRQS.into(),
    }))
}
