//! Log pages (section 5.16.1) and asynchronous events (section 5.2).

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Log page: error information (5.16.1.2).
pub const LOG_ERRORS: u8 = 0x01;
/// Log page: SMART / health information (5.16.1.3).
pub const LOG_SMART: u8 = 0x02;
/// Log page: firmware slot information (5.16.1.4).
pub const LOG_FIRMWARE: u8 = 0x03;
/// Log page: changed namespace list (5.16.1.5).
pub const LOG_CHANGED_NAMESPACES: u8 = 0x04;

/// Get log page, CDW10: the events of this page stay masked (retain asynchronous event).
pub const LOG_RETAIN_EVENT: u32 = 1 << 15;

/// Feature: temperature threshold (5.27.1.3).
pub const FEAT_TEMPERATURE_THRESHOLD: u32 = 0x04;
/// Feature: asynchronous event configuration (5.27.1.8).
pub const FEAT_ASYNC_EVENTS: u32 = 0x0b;

/// Asynchronous event configuration, and OAES: namespace attribute notices.
pub const NOTICE_NAMESPACE: u32 = 1 << 8;
/// Asynchronous event configuration, and OAES: firmware activation notices.
pub const NOTICE_FIRMWARE: u32 = 1 << 9;

/// Type of an asynchronous event, bits 0 to 2 of its dword: an error.
pub const EVENT_ERROR: u8 = 0;
/// Type of an asynchronous event: SMART / health.
pub const EVENT_SMART: u8 = 1;
/// Type of an asynchronous event: a notice.
pub const EVENT_NOTICE: u8 = 2;
/// SMART event: reliability.
pub const EVENT_SMART_RELIABILITY: u8 = 0;
/// SMART event: the temperature is over or under a threshold.
pub const EVENT_SMART_TEMPERATURE: u8 = 1;
/// SMART event: the spare is below its threshold.
pub const EVENT_SMART_SPARE: u8 = 2;
/// Notice: the attributes of a namespace changed.
pub const EVENT_NAMESPACE_CHANGED: u8 = 0;
/// Notice: firmware activation starts.
pub const EVENT_FIRMWARE_ACTIVATION: u8 = 1;

/// Dword 0 of the completion of an asynchronous event request (figure 147).
///
/// ```text
///  0 type (3 bits) | 8 information | 16 log page
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventWord(pub u32);

impl EventWord {
    /// An event of a type, with information, and the log page that tells more and ends its masking.
    #[doc(hidden)]
    pub const fn of(kind: u8, information: u8, log_page: u8) -> Self {
        Self(kind as u32 & 7 | (information as u32) << 8 | (log_page as u32) << 16)
    }

    /// Its type.
    pub const fn kind(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// Its information, by type.
    pub const fn information(self) -> u8 {
        (self.0 >> 8 & 0xff) as u8
    }

    /// The log page that tells more.
    pub const fn log_page(self) -> u8 {
        (self.0 >> 16 & 0xff) as u8
    }
}

bitflags! {
    /// Critical warnings of the SMART log page, byte 0.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct CriticalWarning: u8 {
        /// The available spare is below its threshold.
        const SPARE = 1;
        /// A temperature is over or under its threshold.
        const TEMPERATURE = 1 << 1;
        /// The subsystem's reliability is degraded by media or internal errors.
        const RELIABILITY = 1 << 2;
        /// The medium is in read-only mode.
        const READ_ONLY = 1 << 3;
        /// The volatile memory backup device failed.
        const BACKUP = 1 << 4;
        /// The persistent memory region is read-only or unreliable.
        const PERSISTENT_MEMORY = 1 << 5;
        // What a later specification names is kept.
        const _ = !0;
    }
}

/// The critical warnings that this version of the specification names.
pub const CRITICAL_WARNINGS: u8 = 0x3f;

/// SMART / health information, 512 bytes (figure 207).
///
/// ```text
///   0 warnings     1 temperature    3 spare, threshold, used, endurance groups
///  32 units read  48 units written 64 reads       80 writes   96 busy
/// 112 cycles     128 hours        144 unsafe     160 media   176 error log
/// 192 warning, critical minutes   200 sensors    216 thermal management
/// ```
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SmartLog {
    /// [`CriticalWarning`].
    pub critical_warning: u8,
    /// Composite temperature in kelvins; unaligned on the wire.
    pub temperature_k: U16,
    /// Percent of the spare that is left.
    pub available_spare: u8,
    /// Percent of the spare below which there is a warning.
    pub spare_threshold: u8,
    /// Percent of the device's life used; 255 for 255 and more.
    pub percentage_used: u8,
    /// Warnings of endurance groups.
    pub endurance_warnings: u8,
    reserved_7: [u8; 25],
    /// Thousands of 512 bytes read by the host, rounded up.
    pub data_units_read: U128,
    /// Thousands of 512 bytes written by the host, rounded up.
    pub data_units_written: U128,
    /// Read commands.
    pub host_reads: U128,
    /// Write commands.
    pub host_writes: U128,
    /// Minutes in which commands were outstanding.
    pub busy_minutes: U128,
    /// Times the power came on.
    pub power_cycles: U128,
    /// Hours of power.
    pub power_on_hours: U128,
    /// Times the power went without a shutdown.
    pub unsafe_shutdowns: U128,
    /// Unrecovered data integrity errors.
    pub media_errors: U128,
    /// Entries of the error log in the controller's life.
    pub error_entries: U128,
    /// Minutes above the warning temperature.
    pub warning_minutes: U32,
    /// Minutes above the critical temperature.
    pub critical_minutes: U32,
    /// Temperature sensors in kelvins; 0 for none.
    pub sensors_k: [U16; 8],
    /// Times the light and the heavy thermal management throttled.
    pub thermal_transitions: [U32; 2],
    /// Seconds that they did.
    pub thermal_seconds: [U32; 2],
    reserved_232: [u8; 280],
}
const _: () = assert!(size_of::<SmartLog>() == 512);
const _: () = assert!(std::mem::offset_of!(SmartLog, temperature_k) == 1);
const _: () = assert!(std::mem::offset_of!(SmartLog, data_units_read) == 32);
const _: () = assert!(std::mem::offset_of!(SmartLog, error_entries) == 176);
const _: () = assert!(std::mem::offset_of!(SmartLog, warning_minutes) == 192);
const _: () = assert!(std::mem::offset_of!(SmartLog, sensors_k) == 200);
const _: () = assert!(std::mem::offset_of!(SmartLog, thermal_seconds) == 224);

/// One entry of the error information log page, 64 bytes (figure 206).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default,
)]
#[repr(C)]
pub struct ErrorLogEntry {
    /// A number of its own, counting up; 0 for an entry that is not one.
    pub error_count: U64,
    /// Submission queue.
    pub sq_id: U16,
    /// Command id; FFFFh where the error is of no command.
    pub cid: U16,
    /// Status field, with the phase in bit 0.
    pub status: U16,
    /// Byte and bit of the command's parameter; FFFFh for none.
    pub parameter_location: U16,
    /// First block that failed.
    pub lba: U64,
    /// Namespace.
    pub nsid: U32,
    /// Log page with more, of the vendor's.
    pub vendor_log: u8,
    /// Transport type.
    pub transport: u8,
    reserved_30: [u8; 2],
    /// Command-specific information.
    pub command_specific: U64,
    /// Transport-specific information.
    pub transport_specific: U16,
    reserved_42: [u8; 22],
}
const _: () = assert!(size_of::<ErrorLogEntry>() == 64);
const _: () = assert!(std::mem::offset_of!(ErrorLogEntry, lba) == 16);
const _: () = assert!(std::mem::offset_of!(ErrorLogEntry, command_specific) == 32);
const _: () = assert!(std::mem::offset_of!(ErrorLogEntry, transport_specific) == 40);

/// Firmware slot information, 512 bytes (figure 208).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FirmwareLog {
    /// Active slot (bits 0 to 2), and the slot of the next reset (bits 4 to 6; 0 for the same).
    pub active: u8,
    reserved_1: [u8; 7],
    /// Revisions of slots 1 to 7, ASCII; zeroes for an empty slot.
    pub revisions: [[u8; 8]; 7],
    reserved_64: [u8; 448],
}
const _: () = assert!(size_of::<FirmwareLog>() == 512);
const _: () = assert!(std::mem::offset_of!(FirmwareLog, revisions) == 8);

/// Namespace ids in the changed namespace list; more than fit are told by FFFFFFFFh in the first.
pub const CHANGED_NAMESPACES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_words_are_taken_apart() {
        // What QEMU 7.2 reports for a temperature warning.
        let word = EventWord(0x0002_0101);
        assert_eq!(
            word,
            EventWord::of(EVENT_SMART, EVENT_SMART_TEMPERATURE, LOG_SMART)
        );
        assert_eq!(
            (word.kind(), word.information(), word.log_page()),
            (1, 1, 2)
        );
        assert_eq!(EventWord(u32::MAX).kind(), 7);
    }
}
