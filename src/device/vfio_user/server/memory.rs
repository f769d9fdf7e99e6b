//! The memory that a client shares.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use super::session::{Errno, Reply};
use crate::device::emu::EmuDevice;
use crate::device::vfio_user::wire;
use crate::mem::{PeerFault, PeerMemory};
use crate::units::Iova;

/// All that the client mapped, by device address.
///
/// Memory that comes without a file, or that the device may not both read and write (a guest's ROM), is kept
/// track of, and not reachable: a command that names it ends with a data transfer error.
#[derive(Debug)]
pub(super) struct Maps {
    maps: BTreeMap<u64, Map>,
    /// Bytes of memory that are mapped here now, in all.
    lent_bytes: u64,
    most_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Map {
    len_bytes: u64,
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

impl Maps {
    /// Mappings that are kept for a client.
    pub(super) const MOST: usize = 256;

    /// For a client that may lend so many bytes at a time: pages that it lends and has never touched are charged to
    /// the process that touches them first, which is this one.
    pub(super) fn new(most_bytes: u64) -> Self {
        Self {
            maps: BTreeMap::new(),
            lent_bytes: 0,
            most_bytes,
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
        let fd = fds.first().filter(|_| flags == wire::DMA_READ_WRITE);
        if let Some(fd) = fd {
            let lent_bytes = self.lent_bytes.checked_add(len);
            let lent_bytes = lent_bytes
                .filter(|bytes| *bytes <= self.most_bytes)
                .ok_or((
                    libc::ENOMEM,
                    "the client would lend more memory in all than it may",
                ))?;
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
            device
                .change_memory(|space| space.map_peer(memory))
                .map_err(|_| (libc::EEXIST, "the range overlaps one that is mapped"))?;
            self.lent_bytes = lent_bytes;
        }
        let map = Map {
            len_bytes: len,
            reachable: fd.is_some(),
        };
        self.maps.insert(address, map);
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
                self.lent_bytes = 0;
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
                }
            }
            _ => return Err(libc::EINVAL),
        }
        Ok(Reply::of(asked))
    }
}
