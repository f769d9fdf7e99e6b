//! Parts of words.

pub(super) fn low16(value: u32) -> u16 {
    (value & 0xffff) as u16
}
