//! The memory that a client shares.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use super::reply::{Errno, Reply};
use super::{ServerOptions, part};
use crate::device::emu::EmuDevice;
use crate::device::vfio_user::wire;
use crate::mem::{PeerFault, PeerMemory};
use crate::sys::{available_bytes, charge_room_bytes};
use crate::units::Iova;

/// All that the client mapped, by device address.
///
/// Memory that comes without a file, or that the device may not both read and write (a guest's
/// ROM), is kept track of, and not reachable: a command that names it ends with a data transfer
/// error.
#[derive(Debug)]
pub(super) struct ClientMaps {
    maps: BTreeMap<u64, Map>,
    /// Bytes of memory that are mapped here now, in all.
    lent_bytes: u64,
    /// Those of them that had no memory when they were mapped.
    missing_bytes: u64,
    most_bytes: u64,
    /// The limit is the default: what can be had now counts as well.
    by_default: bool,
}

#[derive(Debug, Clone, Copy)]
struct Map {
    len_bytes: u64,
    missing_bytes: u64,
    reachable: bool,
}

/// Why a request to map memory was refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    pub(super) address: u64,
    pub(super) len_bytes: u64,
    pub(super) errno: Errno,
    pub(super) why: &'static str,
}

impl ClientMaps {
    /// Mappings that are kept for a client.
    pub(super) const MOST: usize = 256;

    /// For a client that lends as much at a time as the options say. Pages that it lends and has
    /// never touched are charged to the process that touches them first, which is this one, and
    /// stay so when the client has left.
    pub(super) fn new(options: &ServerOptions) -> Self {
        Self {
            maps: BTreeMap::new(),
            lent_bytes: 0,
            missing_bytes: 0,
            most_bytes: options.lent_bytes(),
            by_default: options.most_lent_bytes.is_none(),
        }
    }

    pub(super) fn map(
        &mut self,
        device: &EmuDevice,
        payload: &[u8],
        fds: &[OwnedFd],
    ) -> Result<Reply, Refusal> {
        let Some((asked, _)) = wire::split::<wire::DmaMap>(payload) else {
            return Err(Refusal {
                address: 0,
                len_bytes: 0,
                errno: libc::EINVAL,
                why: "the message is too short",
            });
        };
        let (address, len_bytes) = (asked.address.get(), asked.len_bytes.get());
        self.try_map(device, asked, fds)
            .map_err(|(errno, why)| Refusal {
                address,
                len_bytes,
                errno,
                why,
            })?;
        Ok(Reply::default())
    }

    fn try_map(
        &mut self,
        device: &EmuDevice,
        asked: &wire::DmaMap,
        fds: &[OwnedFd],
    ) -> Result<(), (Errno, &'static str)> {
        let bad = |why| (libc::EINVAL, why);
        let (address, len, flags) = (
            asked.address.get(),
            asked.len_bytes.get(),
            asked.flags.get(),
        );
        if !address.is_multiple_of(4096) || !len.is_multiple_of(4096) || len == 0 {
            return Err(bad("the range is not in whole pages"));
        }
        let argsz = asked.argsz.get() as usize;
        if flags & !wire::DMA_READ_WRITE != 0 || argsz < size_of::<wire::DmaMap>() {
            return Err(bad("its flags or its size are unknown"));
        }
        if fds.len() > 1 {
            return Err(bad("more than one descriptor came along"));
        }
        let end = address
            .checked_add(len)
            .ok_or(bad("the range runs past the last device address"))?;
        if self.overlaps(address, end) {
            return Err((libc::EEXIST, "the range overlaps one that is mapped"));
        }
        if self.maps.len() >= Self::MOST {
            return Err((libc::ENOSPC, "the client has as many mappings as it may"));
        }
        let mut map = Map {
            len_bytes: len,
            missing_bytes: 0,
            reachable: false,
        };
        if let Some(fd) = fds.first().filter(|_| flags == wire::DMA_READ_WRITE) {
            self.check_sum(len)?;
            let offset = asked.offset_bytes.get();
            let memory = PeerMemory::map(fd.as_fd(), offset, Iova(address), len).map_err(
                |fault| match fault {
                    PeerFault::Invalid(why) => bad(why),
                    PeerFault::System(e) => (
                        e.raw_os_error().unwrap_or(libc::ENOMEM),
                        "the memory cannot be mapped",
                    ),
                },
            )?;
            map.missing_bytes = memory.missing_bytes();
            map.reachable = true;
            // What clients lent before, and is charged still, is not there any more.
            if self.by_default && memory.chargeable_bytes() > part(charge_room_bytes()) {
                return Err((
                    libc::ENOMEM,
                    "the client would lend more memory than the server's control group has left",
                ));
            }
            let missing_bytes = self.missing_bytes.saturating_add(map.missing_bytes);
            if self.by_default && missing_bytes > part(available_bytes()) {
                return Err((
                    libc::ENOMEM,
                    "the client would lend more memory that is not allocated than this machine has available",
                ));
            }
            device
                .change_memory(|space| space.map_peer(memory))
                .map_err(|_| (libc::EEXIST, "the range overlaps one that is mapped"))?;
            self.lent_bytes += len;
            self.missing_bytes = missing_bytes;
        }
        self.maps.insert(address, map);
        Ok(())
    }

    /// Whether so many bytes more may be lent.
    fn check_sum(&self, len: u64) -> Result<(), (Errno, &'static str)> {
        let sum = self.lent_bytes.checked_add(len);
        if sum.is_none_or(|sum| sum > self.most_bytes) {
            let why = "the client would lend more memory in all than it may";
            return Err((libc::ENOMEM, why));
        }
        Ok(())
    }

    fn overlaps(&self, start: u64, end: u64) -> bool {
        let before = self.maps.range(..end).next_back();
        before.is_some_and(|(at, map)| at.saturating_add(map.len_bytes) > start)
    }

    /// Forgets a mapping, named exactly, or all. When it is answered the device uses it no more.
    pub(super) fn unmap(&mut self, device: &EmuDevice, payload: &[u8]) -> Result<Reply, Errno> {
        let (asked, _) = wire::split::<wire::DmaUnmap>(payload).ok_or(libc::EINVAL)?;
        let (address, len) = (asked.address.get(), asked.len_bytes.get());
        match asked.flags.get() {
            wire::UNMAP_ALL if address == 0 && len == 0 => {
                self.maps.clear();
                (self.lent_bytes, self.missing_bytes) = (0, 0);
                device.change_memory(crate::mem::DmaSpace::unmap_peers);
            }
            0 => {
                let known = self.maps.get(&address).copied();
                let map = known
                    .filter(|map| map.len_bytes == len)
                    .ok_or(libc::ENOENT)?;
                self.maps.remove(&address);
                if let (true, Ok(len)) = (map.reachable, usize::try_from(len)) {
                    device.change_memory(|space| space.unmap_peer(Iova(address), len));
                    self.lent_bytes = self.lent_bytes.saturating_sub(map.len_bytes);
                    self.missing_bytes = self.missing_bytes.saturating_sub(map.missing_bytes);
                }
            }
            _ => return Err(libc::EINVAL),
        }
        Ok(Reply::of(asked))
    }
}
