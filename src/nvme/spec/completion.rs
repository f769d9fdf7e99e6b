//! Completion queue entries (section 3.3.3.2) and status codes (section 4.2.3).

/// Bytes of a completion queue entry.
///
/// ```text
///  0 command specific    4 command specific
///  8 SQ head | SQ id    12 command id | phase (bit 16) | status (bits 17..31)
/// ```
pub const CQE_BYTES: usize = 16;

/// The status field of a completion: dword 3, bits 17 to 31, without the phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct StatusField(pub u16);

impl StatusField {
    /// Success.
    #[doc(hidden)]
    pub const SUCCESS: Self = Self(0);

    /// A status field of a type and a code.
    #[doc(hidden)]
    pub const fn of(sct: u8, sc: u8) -> Self {
        Self((sct as u16 & 7) << 8 | sc as u16)
    }

    /// The same with "do not retry" set.
    #[must_use]
    #[doc(hidden)]
    pub const fn do_not_retry(self) -> Self {
        Self(self.0 | 1 << 14)
    }

    /// From dword 3 of a completion.
    #[inline]
    #[doc(hidden)]
    pub const fn from_dw3(dw3: u32) -> Self {
        Self((dw3 >> 17) as u16)
    }

    /// Into bits 17 to 31 of dword 3.
    #[doc(hidden)]
    pub const fn to_dw3(self) -> u32 {
        (self.0 as u32) << 17
    }

    /// Status code.
    pub const fn sc(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// Status code type.
    pub const fn sct(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    /// "Do not retry": the same command would fail again.
    #[doc(hidden)]
    pub const fn dnr(self) -> bool {
        self.0 >> 14 & 1 == 1
    }

    /// Neither a status code nor a type.
    #[inline]
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }
}

/// Generic status: invalid command opcode.
pub const SC_INVALID_OPCODE: StatusField = StatusField::of(0, 0x01);
/// Generic status: invalid field in command.
pub const SC_INVALID_FIELD: StatusField = StatusField::of(0, 0x02);
/// Generic status: command id conflict.
pub const SC_CID_CONFLICT: StatusField = StatusField::of(0, 0x03);
/// Generic status: data transfer error.
pub const SC_DATA_TRANSFER: StatusField = StatusField::of(0, 0x04);
/// Generic status: internal error.
pub const SC_INTERNAL: StatusField = StatusField::of(0, 0x06);
/// Generic status: abort requested.
pub const SC_ABORT_REQUESTED: StatusField = StatusField::of(0, 0x07);
/// Generic status: aborted because its submission queue was deleted.
pub const SC_SQ_DELETED: StatusField = StatusField::of(0, 0x08);
/// Generic status: command sequence error.
pub const SC_COMMAND_SEQUENCE: StatusField = StatusField::of(0, 0x0c);
/// Generic status: namespace is write protected.
pub const SC_NAMESPACE_WRITE_PROTECTED: StatusField = StatusField::of(0, 0x20);
/// Generic status: invalid namespace or format.
pub const SC_INVALID_NAMESPACE: StatusField = StatusField::of(0, 0x0b);
/// Generic status: invalid SGL segment descriptor.
pub const SC_INVALID_SGL_SEGMENT: StatusField = StatusField::of(0, 0x0d);
/// Generic status: invalid number of SGL descriptors.
pub const SC_INVALID_SGL_COUNT: StatusField = StatusField::of(0, 0x0e);
/// Generic status: data SGL length invalid.
pub const SC_DATA_SGL_LENGTH: StatusField = StatusField::of(0, 0x0f);
/// Generic status: SGL descriptor type invalid.
pub const SC_SGL_TYPE: StatusField = StatusField::of(0, 0x11);
/// Generic status: SGL data block granularity invalid.
pub const SC_SGL_GRANULARITY: StatusField = StatusField::of(0, 0x1e);
/// Generic status: PRP offset invalid.
pub const SC_INVALID_PRP_OFFSET: StatusField = StatusField::of(0, 0x13);
/// Generic status: LBA out of range.
pub const SC_LBA_OUT_OF_RANGE: StatusField = StatusField::of(0, 0x80);
/// Generic status: capacity exceeded.
pub const SC_CAPACITY_EXCEEDED: StatusField = StatusField::of(0, 0x81);
/// Generic status: namespace not ready.
pub const SC_NAMESPACE_NOT_READY: StatusField = StatusField::of(0, 0x82);
/// Command specific: completion queue invalid.
pub const SC_INVALID_CQ: StatusField = StatusField::of(1, 0x00);
/// Command specific: invalid queue identifier.
pub const SC_INVALID_QUEUE_ID: StatusField = StatusField::of(1, 0x01);
/// Command specific: invalid queue size.
pub const SC_INVALID_QUEUE_SIZE: StatusField = StatusField::of(1, 0x02);
/// Command specific: abort command limit exceeded.
pub const SC_ABORT_LIMIT: StatusField = StatusField::of(1, 0x03);
/// Command specific: asynchronous event request limit exceeded.
pub const SC_ASYNC_EVENT_LIMIT: StatusField = StatusField::of(1, 0x05);
/// Command specific: invalid interrupt vector.
pub const SC_INVALID_INTERRUPT_VECTOR: StatusField = StatusField::of(1, 0x08);
/// Command specific: invalid log page.
pub const SC_INVALID_LOG_PAGE: StatusField = StatusField::of(1, 0x09);
/// Command specific: feature identifier not saveable.
pub const SC_FEATURE_NOT_SAVEABLE: StatusField = StatusField::of(1, 0x0d);
/// Command specific: invalid queue deletion.
pub const SC_INVALID_QUEUE_DELETION: StatusField = StatusField::of(1, 0x0c);
/// Command specific: attempted write to read-only range.
pub const SC_READ_ONLY_RANGE: StatusField = StatusField::of(1, 0x82);
/// Command specific: a limit of the size of commands was exceeded.
pub const SC_COMMAND_SIZE_LIMIT: StatusField = StatusField::of(1, 0x83);
/// Media: write fault.
pub const SC_WRITE_FAULT: StatusField = StatusField::of(2, 0x80);
/// Media: unrecovered read error.
pub const SC_UNRECOVERED_READ: StatusField = StatusField::of(2, 0x81);

/// A person's words for a status code; "an unknown status" where the specification or this table
/// has none.
pub fn status_name(sct: u8, sc: u8) -> &'static str {
    match (sct, sc) {
        (0, 0x00) => "success",
        (0, 0x01) => "an invalid command opcode",
        (0, 0x02) => "an invalid field in the command",
        (0, 0x03) => "a command id conflict",
        (0, 0x04) => "a data transfer error",
        (0, 0x05) => "an abort due to power loss",
        (0, 0x06) => "an internal error",
        (0, 0x07) => "that the command was aborted",
        (0, 0x08) => "that the submission queue was deleted",
        (0, 0x0b) => "an invalid namespace or format",
        (0, 0x0c) => "a command sequence error",
        (0, 0x0d) => "an invalid SGL segment descriptor",
        (0, 0x0e) => "an invalid number of SGL descriptors",
        (0, 0x0f) => "an invalid length of the SGL",
        (0, 0x11) => "an invalid type of SGL descriptor",
        (0, 0x13) => "an invalid PRP offset",
        (0, 0x1e) => "an invalid granularity of an SGL data block",
        (0, 0x20) => "that the namespace is write protected",
        (0, 0x80) => "an LBA out of range",
        (0, 0x81) => "that its capacity is exceeded",
        (0, 0x82) => "that the namespace is not ready",
        (0, 0x83) => "a reservation conflict",
        (0, 0x84) => "that a format is in progress",
        (1, 0x00) => "an invalid completion queue",
        (1, 0x01) => "an invalid queue identifier",
        (1, 0x02) => "an invalid queue size",
        (1, 0x03) => "that its limit of aborts is exceeded",
        (1, 0x05) => "that its limit of event requests is exceeded",
        (1, 0x08) => "an invalid interrupt vector",
        (1, 0x09) => "an invalid log page",
        (1, 0x0c) => "an invalid queue deletion",
        (1, 0x82) => "a write to a read-only range",
        (1, 0x83) => "a command that exceeds a limit of its size",
        (2, 0x80) => "a write fault of the medium",
        (2, 0x81) => "an unrecovered read error of the medium",
        (2, 0x82) => "a guard check error",
        (2, 0x85) => "a compare failure",
        (2, 0x86) => "denied access",
        (2, 0x87) => "a deallocated or unwritten block",
        (3, _) => "a path error",
        (7, _) => "a vendor's own status",
        _ => "an unknown status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_field_survives_dword_3() {
        let status = SC_UNRECOVERED_READ.do_not_retry();
        let dw3 = status.to_dw3() | 1 << 16 | 0x1234;
        let back = StatusField::from_dw3(dw3);
        assert_eq!(back, status);
        assert_eq!((back.sct(), back.sc(), back.dnr()), (2, 0x81, true));
        assert!(!back.is_success());
        assert!(StatusField::from_dw3(1 << 16 | 7).is_success());
    }
}
