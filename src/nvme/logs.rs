//! Log pages of a controller: SMART, errors, firmware slots (section 5.16.1).

use zerocopy::FromBytes;

use super::admin::{Admin, AdminFailure};
use super::controller::Controller;
use super::info::text;
use super::spec::{
    CriticalWarning, ErrorLogEntry, FirmwareLog, IDENTIFY_BYTES, LOG_ERRORS, LOG_FIRMWARE,
    LOG_SMART, SmartLog, StatusField,
};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a data unit in the SMART log.
pub const DATA_UNIT_BYTES: u128 = 512_000;

/// SMART / health information of a controller, all namespaces together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmartInfo {
    /// Critical warnings now.
    pub critical_warning: CriticalWarning,
    /// Composite temperature in kelvins; 0 where it is not said.
    pub temperature_k: u16,
    /// Percent of the spare that is left.
    pub available_spare: u8,
    /// Percent of the spare below which there is a warning.
    pub spare_threshold: u8,
    /// Percent of the device's life used; 255 for 255 and more.
    pub percentage_used: u8,
    /// Warnings of endurance groups.
    pub endurance_warnings: u8,
    /// Units of [`DATA_UNIT_BYTES`] read by the host, rounded up.
    pub data_units_read: u128,
    /// Units of [`DATA_UNIT_BYTES`] written by the host, rounded up.
    pub data_units_written: u128,
    /// Read commands.
    pub host_reads: u128,
    /// Write commands.
    pub host_writes: u128,
    /// Minutes in which commands were outstanding.
    pub busy_minutes: u128,
    /// Times the power came on.
    pub power_cycles: u128,
    /// Hours of power.
    pub power_on_hours: u128,
    /// Times the power went without a shutdown.
    pub unsafe_shutdowns: u128,
    /// Unrecovered data integrity errors.
    pub media_errors: u128,
    /// Entries of the error log in the controller's life.
    pub error_entries: u128,
    /// Minutes above the warning temperature.
    pub warning_minutes: u32,
    /// Minutes above the critical temperature.
    pub critical_minutes: u32,
    /// Temperature sensors in kelvins; 0 for none.
    pub sensors_k: [u16; 8],
    /// Times the light and the heavy thermal management throttled.
    pub thermal_transitions: [u32; 2],
    /// Seconds that they did.
    pub thermal_seconds: [u32; 2],
}

impl SmartInfo {
    fn of(log: &SmartLog) -> Self {
        Self {
            critical_warning: CriticalWarning::from_bits_retain(log.critical_warning),
            temperature_k: log.temperature_k.get(),
            available_spare: log.available_spare,
            spare_threshold: log.spare_threshold,
            percentage_used: log.percentage_used,
            endurance_warnings: log.endurance_warnings,
            data_units_read: log.data_units_read.get(),
            data_units_written: log.data_units_written.get(),
            host_reads: log.host_reads.get(),
            host_writes: log.host_writes.get(),
            busy_minutes: log.busy_minutes.get(),
            power_cycles: log.power_cycles.get(),
            power_on_hours: log.power_on_hours.get(),
            unsafe_shutdowns: log.unsafe_shutdowns.get(),
            media_errors: log.media_errors.get(),
            error_entries: log.error_entries.get(),
            warning_minutes: log.warning_minutes.get(),
            critical_minutes: log.critical_minutes.get(),
            sensors_k: log.sensors_k.map(|sensor| sensor.get()),
            thermal_transitions: log.thermal_transitions.map(|count| count.get()),
            thermal_seconds: log.thermal_seconds.map(|seconds| seconds.get()),
        }
    }

    /// What cannot be true of it: a device that says so should not be trusted with the rest.
    pub fn implausible(&self) -> Vec<&'static str> {
        let all = [
            (self.available_spare > 100, "more than 100 % of the spare"),
            (self.spare_threshold > 100, "a spare threshold over 100 %"),
            (self.temperature_k > 1000, "a temperature over 1000 K"),
        ];
        all.iter()
            .filter(|(is, _)| *is)
            .map(|(_, what)| *what)
            .collect()
    }
}

/// One entry of the error log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorEntry {
    /// Counts up over the controller's life.
    pub error_count: u64,
    /// Submission queue.
    pub queue: u16,
    /// Command id; `None` where the error is of no command.
    pub command_id: Option<u16>,
    /// How the command ended.
    pub status: StatusField,
    /// The phase that its completion had.
    pub phase: bool,
    /// Byte (bits 0 to 7) and bit (bits 8 to 10) of the wrong parameter; `None` where there is
    /// none.
    pub parameter_location: Option<u16>,
    /// First block that failed, where that makes sense.
    pub lba: u64,
    /// Namespace.
    pub nsid: u32,
    /// A log page of the vendor's with more; 0 for none.
    pub vendor_log: u8,
    /// Transport type.
    pub transport: u8,
    /// Command-specific information.
    pub command_specific: u64,
    /// Transport-specific information.
    pub transport_specific: u16,
}

impl ErrorEntry {
    fn of(entry: &ErrorLogEntry) -> Self {
        let none = |value: u16| (value != u16::MAX).then_some(value);
        Self {
            error_count: entry.error_count.get(),
            queue: entry.sq_id.get(),
            command_id: none(entry.cid.get()),
            status: StatusField(entry.status.get() >> 1),
            phase: entry.status.get() & 1 == 1,
            parameter_location: none(entry.parameter_location.get()),
            lba: entry.lba.get(),
            nsid: entry.nsid.get(),
            vendor_log: entry.vendor_log,
            transport: entry.transport,
            command_specific: entry.command_specific.get(),
            transport_specific: entry.transport_specific.get(),
        }
    }
}

/// The firmware that a controller has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirmwareSlots {
    /// The slot that runs, 1 to 7; 0 where it is not said.
    pub active: u8,
    /// The slot that the next controller reset activates, where that is another.
    pub next: Option<u8>,
    /// Slots that hold a revision.
    pub revisions: Vec<(u8, String)>,
}

impl FirmwareSlots {
    fn of(log: &FirmwareLog) -> Self {
        let next = log.active >> 4 & 7;
        Self {
            active: log.active & 7,
            next: (next != 0).then_some(next),
            revisions: (1..)
                .zip(&log.revisions)
                .map(|(slot, revision)| (slot, text(revision)))
                .filter(|(_, revision)| !revision.is_empty())
                .collect(),
        }
    }
}

const ENTRY_BYTES: usize = size_of::<ErrorLogEntry>();

/// Entries that one page of memory holds.
const ENTRIES_AT_ONCE: usize = IDENTIFY_BYTES / ENTRY_BYTES;

impl Controller {
    /// SMART / health information. Ends the masking of SMART events.
    ///
    /// # Errors
    /// What the controller says, or that it does not answer (it is then reset).
    pub fn smart(&self) -> Result<SmartInfo> {
        self.asking("get log page SMART", |admin| self.read_smart(admin))
    }

    pub(super) fn read_smart(&self, admin: &mut Admin) -> Result<SmartInfo, AdminFailure> {
        let bytes = self.log_page(admin, LOG_SMART, size_of::<SmartLog>(), 0)?;
        let log = SmartLog::read_from_bytes(&bytes).map_err(|_| AdminFailure::Confused)?;
        Ok(SmartInfo::of(&log))
    }

    /// The newest entries of the error log, at most `most`, newest first. Ends the masking of error
    /// events.
    ///
    /// # Errors
    /// What the controller says, or that it does not answer (it is then reset).
    pub fn error_log(&self, most: usize) -> Result<Vec<ErrorEntry>> {
        self.asking("get log page error information", |admin| {
            self.read_errors(admin, most)
        })
    }

    pub(super) fn read_errors(
        &self,
        admin: &mut Admin,
        most: usize,
    ) -> Result<Vec<ErrorEntry>, AdminFailure> {
        let info = self.info();
        let mut most = most.min(usize::from(info.error_log_entries));
        if !info.extended_log_pages {
            // Without offsets there is one look.
            most = most.min(ENTRIES_AT_ONCE);
        }
        let mut entries: Vec<ErrorEntry> = Vec::new();
        let mut read = 0;
        while read < most {
            let now = (most - read).min(ENTRIES_AT_ONCE);
            let at = read * ENTRY_BYTES;
            let bytes = self.log_page(admin, LOG_ERRORS, now * ENTRY_BYTES, at)?;
            for entry in bytes.chunks_exact(ENTRY_BYTES) {
                let entry = ErrorLogEntry::read_from_bytes(entry).unwrap_or_default();
                // Entries move on when another error comes between two looks: none is taken twice.
                let older = |last: &ErrorEntry| entry.error_count.get() < last.error_count;
                if entry.error_count.get() != 0 && entries.last().is_none_or(older) {
                    entries.push(ErrorEntry::of(&entry));
                }
            }
            read += now;
        }
        Ok(entries)
    }

    /// The firmware slots.
    ///
    /// # Errors
    /// What the controller says, or that it does not answer (it is then reset).
    pub fn firmware_slots(&self) -> Result<FirmwareSlots> {
        self.asking("get log page firmware slots", |admin| {
            self.read_firmware(admin)
        })
    }

    pub(super) fn read_firmware(&self, admin: &mut Admin) -> Result<FirmwareSlots, AdminFailure> {
        let bytes = self.log_page(admin, LOG_FIRMWARE, size_of::<FirmwareLog>(), 0)?;
        let log = FirmwareLog::read_from_bytes(&bytes).map_err(|_| AdminFailure::Confused)?;
        Ok(FirmwareSlots::of(&log))
    }

    pub(super) fn log_page(
        &self,
        admin: &mut Admin,
        page: u8,
        len_bytes: usize,
        at_bytes: usize,
    ) -> Result<Vec<u8>, AdminFailure> {
        admin.log_page(&self.port, &self.counters, page, len_bytes, at_bytes)
    }

    /// Runs admin commands for a caller; a controller that does not answer is reset.
    fn asking<T>(
        &self,
        what: &'static str,
        ask: impl FnOnce(&mut Admin) -> Result<T, AdminFailure>,
    ) -> Result<T> {
        let mut admin = self.admin();
        if self.is_gone() {
            return Err(Error::new(ErrorKind::DeviceGone, "the controller is gone"))
                .map_err(|error| error.during(what).on_device(self.name()));
        }
        ask(&mut admin).map_err(|failure| {
            if !matches!(failure, AdminFailure::Status(_)) {
                // The admin queue is in doubt; queues find the new generation, or that it is gone.
                let _ = self.reset(&mut admin);
            }
            failure.into_error(what).on_device(self.name())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::{FromZeros, IntoBytes};

    #[test]
    fn a_smart_log_of_ones_is_read_and_doubted() {
        let log = SmartLog::read_from_bytes(&[0xff; 512]).unwrap();
        let smart = SmartInfo::of(&log);
        assert_eq!(smart.data_units_read, u128::MAX);
        assert_eq!(smart.critical_warning.bits(), 0xff);
        assert_eq!(smart.implausible().len(), 3);
        let smart = SmartInfo::of(&SmartLog::new_zeroed());
        assert!(smart.implausible().is_empty());
    }

    #[test]
    fn firmware_slots_are_those_that_hold_something_printable() {
        let mut log = FirmwareLog::new_zeroed();
        log.as_mut_bytes()[0] = 0x32;
        log.revisions[1] = *b"1.0     ";
        log.revisions[2] = *b"\x1b[31m\0\0\0";
        let slots = FirmwareSlots::of(&log);
        assert_eq!((slots.active, slots.next), (2, Some(3)));
        let found: Vec<_> = slots.revisions.iter().map(|(n, r)| (*n, &**r)).collect();
        assert_eq!(found, [(2, "1.0"), (3, "?[31m")]);
    }
}
