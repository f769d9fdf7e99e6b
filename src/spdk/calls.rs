//! The calls into SPDK that hand it a command of a [`Core`], and the callbacks by which it reads
//! the command's memory and ends it.

use std::ffi::{c_int, c_void};
use std::ptr;

use spdk_sys as ffi;

use super::core::{Core, SpdkCommand};
use super::slots::SpdkSlot;
use crate::block::Op;

/// Deallocate, in dword 11 of dataset management.
const DSM_DEALLOCATE: u32 = 1 << 2;

impl Core {
    /// Hands one command to SPDK. 0 or a negative errno.
    pub(super) fn issue(&self, slot: &SpdkSlot, command: &SpdkCommand, blocks: u64) -> c_int {
        let (ns, qpair) = (self.ns.get(), self.qpair.get());
        if qpair.is_null() || ns.is_null() {
            return -libc::ENXIO;
        }
        let argument = ptr::from_ref(command).cast_mut().cast::<c_void>();
        let lba = slot.lba.get() + slot.sent.get();
        // At most 65,536 but for deallocation, which has 32 bits.
        let count = u32::try_from(blocks).unwrap_or(u32::MAX);
        let flags = slot.flags.get();
        let done = Some(on_done as OnDone);
        match slot.op.get() {
            Op::Flush => {
                // SAFETY: namespace and queue pair are the controller's, valid while the generation
                // is; the argument lives in the core, which outlives the queue pair.
                unsafe { ffi::spdk_nvme_ns_cmd_flush(ns, qpair, done, argument) }
            }
            Op::WriteZeroes => {
                // SAFETY: as above.
                unsafe {
                    ffi::spdk_nvme_ns_cmd_write_zeroes(ns, qpair, lba, count, done, argument, flags)
                }
            }
            Op::Deallocate => {
                let mut range = ffi::spdk_nvme_dsm_range {
                    length: count,
                    starting_lba: lba,
                    ..Default::default()
                };
                // SAFETY: as above; SPDK copies the one range before it returns.
                unsafe {
                    ffi::spdk_nvme_ns_cmd_dataset_management(
                        ns,
                        qpair,
                        DSM_DEALLOCATE,
                        &raw mut range,
                        1,
                        done,
                        argument,
                    )
                }
            }
            op => self.issue_data(op == Op::Write, slot, command, (lba, count)),
        }
    }

    fn issue_data(
        &self,
        write: bool,
        slot: &SpdkSlot,
        command: &SpdkCommand,
        (lba, count): (u64, u32),
    ) -> c_int {
        let (ns, qpair) = (self.ns.get(), self.qpair.get());
        let argument = ptr::from_ref(command).cast_mut().cast::<c_void>();
        let flags = slot.flags.get();
        let done = Some(on_done as OnDone);
        let (at, offset) = command.first.get();
        let piece = self.piece(slot, at);
        let bytes = u64::from(count) * u64::from(self.shape.limits.block_bytes);
        if u64::from(piece.len_bytes - offset) >= bytes {
            // SAFETY: offset lies in the piece.
            let memory = unsafe { piece.base.add(offset as usize) }
                .as_ptr()
                .cast::<c_void>();
            let call = if write {
                ffi::spdk_nvme_ns_cmd_write
            } else {
                ffi::spdk_nvme_ns_cmd_read
            };
            // SAFETY: as in `issue`; the memory is lent to this chain, and long enough, until it is
            // handed over.
            return unsafe { call(ns, qpair, memory, lba, count, done, argument, flags) };
        }
        let call = if write {
            ffi::spdk_nvme_ns_cmd_writev
        } else {
            ffi::spdk_nvme_ns_cmd_readv
        };
        let (reset, next) = (Some(reset_sgl as ResetSgl), Some(next_sge as NextSge));
        // SAFETY: as above; the list is read through the command, which stays with SPDK until its
        // end.
        unsafe { call(ns, qpair, lba, count, done, argument, flags, reset, next) }
    }
}

type OnDone = unsafe extern "C" fn(*mut c_void, *const ffi::spdk_nvme_cpl);
type ResetSgl = unsafe extern "C" fn(*mut c_void, u32);
type NextSge = unsafe extern "C" fn(*mut c_void, *mut *mut c_void, *mut u32) -> c_int;

/// Bytes before the status in a completion entry (base specification 2.0c, 3.3.3.2.1).
const STATUS_AT: usize = 14;

/// SPDK ends a command.
unsafe extern "C" fn on_done(argument: *mut c_void, cpl: *const ffi::spdk_nvme_cpl) {
    // SAFETY: the argument that `issue` gave: a command of a core that outlives the queue pair,
    // shared only with code of this thread (see `Core`), through cells.
    let command = unsafe { &*argument.cast::<SpdkCommand>() };
    // SAFETY: set by `send` to the core that the command is part of.
    let core = unsafe { &*command.core.get() };
    // SAFETY: a completion has 16 bytes.
    let status = unsafe { cpl.cast::<u8>().add(STATUS_AT) }.cast::<u16>();
    // SAFETY: valid for this call, and aligned to 2.
    let status = unsafe { status.read() };
    let [sc, sct] = (status >> 1 & 0x7ff).to_le_bytes();
    core.end_command(command, sct & 7, sc);
}

/// SPDK begins to read a command's list of memory, at an offset.
unsafe extern "C" fn reset_sgl(argument: *mut c_void, offset: u32) {
    // SAFETY: as in `on_done`.
    let command = unsafe { &*argument.cast::<SpdkCommand>() };
    // SAFETY: as in `on_done`.
    let core = unsafe { &*command.core.get() };
    let slot = &core.slots[command.slot.get() as usize];
    let (mut at, first) = command.first.get();
    let mut offset = u64::from(first) + u64::from(offset);
    while at < slot.pieces.get() {
        let len = u64::from(core.piece(slot, at).len_bytes);
        if offset < len {
            break;
        }
        offset -= len;
        at += 1;
    }
    command.at.set((at, u32::try_from(offset).unwrap_or(0)));
}

/// SPDK asks for the next piece of a command's memory. It takes no more of it than the command has.
unsafe extern "C" fn next_sge(
    argument: *mut c_void,
    address: *mut *mut c_void,
    length: *mut u32,
) -> c_int {
    // SAFETY: as in `on_done`.
    let command = unsafe { &*argument.cast::<SpdkCommand>() };
    // SAFETY: as in `on_done`.
    let core = unsafe { &*command.core.get() };
    let slot = &core.slots[command.slot.get() as usize];
    let (at, offset) = command.at.get();
    if at >= slot.pieces.get() {
        return -libc::EINVAL;
    }
    let piece = core.piece(slot, at);
    // SAFETY: offset is less than the piece's length.
    let base = unsafe { piece.base.add(offset as usize) };
    // SAFETY: SPDK hands over a place for the answer.
    unsafe { address.write(base.as_ptr().cast()) };
    // SAFETY: as above.
    unsafe { length.write(piece.len_bytes - offset) };
    command.at.set((at + 1, 0));
    0
}
