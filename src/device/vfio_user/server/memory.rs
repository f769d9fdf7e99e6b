//! The memory that a client shares.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;

use super::session::{Errno, Reply};
use crate::device::emu::EmuDevice;
use crate::device::vfio_user::wire;
use crate::error::ErrorKind;
use crate::mem::PeerMemory;
use crate::units::Iova;

/// All that the client mapped, length by device address.
///
/// Memory that comes without a file, or that the device may not both read and write (a guest's ROM), is kept
/// track of, and not reachable: a command that names it ends with a data transfer error.
#[derive(Debug, Default)]
pub(super) struct Maps(BTreeMap<u64, u64>);

impl Maps {
    /// Mappings that are kept for a client.
    pub(super) const MOST: usize = 256;

    pub(super) fn map(
        &mut self,
        device: &EmuDevice,
        payload: &[u8],
        fds: &[OwnedFd],
    ) -> Result<Reply, Errno> {
        let (asked, _) = wire::split::<wire::DmaMap>(payload).ok_or(libc::EINVAL)?;
        let (address, len, flags) = (
            asked.address.get(),
            asked.len_bytes.get(),
            asked.flags.get(),
        );
        let whole = address.is_multiple_of(4096) && len.is_multiple_of(4096) && len > 0;
        let known = flags & !wire::DMA_READ_WRITE == 0;
        let argsz = asked.argsz.get() as usize;
        if !whole || !known || argsz < size_of::<wire::DmaMap>() || fds.len() > 1 {
            return Err(libc::EINVAL);
        }
        let end = address.checked_add(len).ok_or(libc::EINVAL)?;
        if self.overlaps(address, end) {
            return Err(libc::EEXIST);
        }
        if self.0.len() >= Self::MOST {
            return Err(libc::ENOSPC);
        }
        if let [fd] = fds
            && flags == wire::DMA_READ_WRITE
        {
            let file = File::from(fd.try_clone().map_err(|_| libc::EMFILE)?);
            let memory = PeerMemory::map(&file, asked.offset_bytes.get(), Iova(address), len)
                .map_err(|e| match e.kind() {
                    ErrorKind::InvalidInput => libc::EINVAL,
                    _ => libc::ENOMEM,
                })?;
            device
                .change_memory(|space| space.map_peer(memory))
                .map_err(|_| libc::EEXIST)?;
        }
        self.0.insert(address, len);
        Ok(Reply::default())
    }

    fn overlaps(&self, start: u64, end: u64) -> bool {
        let before = self.0.range(..end).next_back();
        before.is_some_and(|(at, len)| at.saturating_add(*len) > start)
    }

    /// Forgets a mapping, named exactly, or all. When it is answered the device uses it no more.
    pub(super) fn unmap(&mut self, device: &EmuDevice, payload: &[u8]) -> Result<Reply, Errno> {
        let (asked, _) = wire::split::<wire::DmaUnmap>(payload).ok_or(libc::EINVAL)?;
        let (address, len) = (asked.address.get(), asked.len_bytes.get());
        match asked.flags.get() {
            wire::UNMAP_ALL if address == 0 && len == 0 => {
                self.0.clear();
                device.change_memory(crate::mem::DmaSpace::unmap_peers);
            }
            0 if self.0.get(&address) == Some(&len) => {
                self.0.remove(&address);
                if let Ok(len) = usize::try_from(len) {
                    device.change_memory(|space| space.unmap_peer(Iova(address), len));
                }
            }
            0 => return Err(libc::ENOENT),
            _ => return Err(libc::EINVAL),
        }
        Ok(Reply::of(asked))
    }
}
