//! What VFIO and iommufd answer, taken apart from its bytes: information structures with a chain of
//! capabilities behind them (`linux/vfio.h`, `struct vfio_info_cap_header`).
//!
//! The kernel is trusted no further than bytes go: lengths and offsets are checked, and a chain
//! only ever goes forward, so it ends.

use std::mem::{offset_of, size_of};

use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, vfio_info_cap_header,
    vfio_iommu_type1_info, vfio_region_info,
};

use super::iova::{IovaLimits, IovaRange};

const HEADER_BYTES: usize = size_of::<vfio_info_cap_header>();

/// A structure from the kernel, as bytes in the host's order.
#[derive(Debug, Clone, Copy)]
pub(super) struct KernelStruct<'a>(pub(super) &'a [u8]);

impl<'a> KernelStruct<'a> {
    fn bytes<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    #[expect(
        clippy::host_endian_bytes,
        reason = "the kernel answers in the host's order"
    )]
    fn u16(self, at: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(self.bytes(at)?))
    }

    #[expect(
        clippy::host_endian_bytes,
        reason = "the kernel answers in the host's order"
    )]
    pub(super) fn u32(self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.bytes(at)?))
    }

    #[expect(
        clippy::host_endian_bytes,
        reason = "the kernel answers in the host's order"
    )]
    pub(super) fn u64(self, at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(self.bytes(at)?))
    }

    /// The capability `id` of the chain that starts at byte `first`, from its header on.
    fn capability(self, first: u32, id: u32) -> Option<KernelStruct<'a>> {
        let mut at = usize::try_from(first).ok()?;
        // Zero ends the chain; the structure itself lies before its capabilities.
        while at >= HEADER_BYTES {
            let here = KernelStruct(self.0.get(at..)?);
            let found = here.u16(offset_of!(vfio_info_cap_header, id))?;
            if u32::from(found) == id {
                return Some(here);
            }
            let next = here.u32(offset_of!(vfio_info_cap_header, next))?;
            let next = usize::try_from(next).ok()?;
            if next <= at {
                return None;
            }
            at = next;
        }
        None
    }

    /// The pairs of 64-bit numbers from byte `at`, as many as byte `count_at` says and the bytes
    /// hold.
    fn pairs(self, count_at: usize, at: usize) -> Option<Vec<(u64, u64)>> {
        let count = usize::try_from(self.u32(count_at)?).ok()?;
        let bytes = count.checked_mul(16)?;
        self.0.get(at..at.checked_add(bytes)?)?;
        (0..count)
            .map(|i| Some((self.u64(at + i * 16)?, self.u64(at + i * 16 + 8)?)))
            .collect()
    }
}

/// A region of a device: a BAR, or the configuration space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::device) struct VfioRegion {
    pub(in crate::device) flags: u32,
    /// Where it lies in the device's descriptor, in bytes.
    pub(in crate::device) offset: u64,
    pub(in crate::device) len_bytes: u64,
    /// The parts that may be mapped, `(offset in the region, length)`; all of it when absent.
    pub(in crate::device) sparse: Option<Vec<(u64, u64)>>,
}

impl VfioRegion {
    /// Reads the answer to `VFIO_DEVICE_GET_REGION_INFO`; `None` when it makes no sense.
    pub(in crate::device) fn parse(bytes: &[u8]) -> Option<Self> {
        let answer = KernelStruct(bytes);
        let flags = answer.u32(offset_of!(vfio_region_info, flags))?;
        let first = answer.u32(offset_of!(vfio_region_info, cap_offset))?;
        let mut region = Self {
            flags,
            offset: answer.u64(offset_of!(vfio_region_info, offset))?,
            len_bytes: answer.u64(offset_of!(vfio_region_info, size))?,
            sparse: None,
        };
        if flags & VFIO_REGION_INFO_FLAG_CAPS == 0 {
            return Some(region);
        }
        if let Some(cap) = answer.capability(first, VFIO_REGION_INFO_CAP_SPARSE_MMAP) {
            // Header, number of areas, a reserved word; then offset and size of each.
            region.sparse = Some(cap.pairs(HEADER_BYTES, HEADER_BYTES + 8)?);
        }
        Some(region)
    }
}

/// Reads the answer to `VFIO_IOMMU_GET_INFO`; `None` when it makes no sense.
pub(super) fn parse_iommu(bytes: &[u8]) -> Option<IovaLimits> {
    let answer = KernelStruct(bytes);
    let flags = answer.u32(offset_of!(vfio_iommu_type1_info, flags))?;
    let page_sizes = if flags & VFIO_IOMMU_INFO_PGSIZES == 0 {
        0
    } else {
        answer.u64(offset_of!(vfio_iommu_type1_info, iova_pgsizes))?
    };
    let mut ranges = None;
    if flags & VFIO_IOMMU_INFO_CAPS != 0 {
        let first = answer.u32(offset_of!(vfio_iommu_type1_info, cap_offset))?;
        if let Some(cap) = answer.capability(first, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE) {
            // Header, number of ranges, a reserved word; then first and last address of each.
            let pairs = cap.pairs(HEADER_BYTES, HEADER_BYTES + 8)?;
            ranges = Some(IovaRange::list(&pairs));
        }
    }
    Some(IovaLimits::new(
        ranges,
        page_sizes & page_sizes.wrapping_neg(),
    ))
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Little pieces of structures in the host's order.
    fn put(bytes: &mut Vec<u8>, words: &[u32]) {
        for word in words {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }

    /// An answer to `VFIO_IOMMU_GET_INFO` as Linux 6.1 gives it for QEMU's IOMMU: three
    /// capabilities.
    fn iommu_info() -> Vec<u8> {
        let mut bytes = Vec::new();
        // argsz, flags, page sizes (4 KiB, 2 MiB, 1 GiB), first capability, padding.
        put(&mut bytes, &[112, 3, 0x4020_1000, 0, 24, 0]);
        // Migration, version 1, next at 56.
        put(&mut bytes, &[2 | 1 << 16, 56, 0, 0, 0x1000, 0, 0, 0]);
        // IOVA ranges, version 1, next at 104; two ranges around the interrupts' hole.
        put(&mut bytes, &[1 | 1 << 16, 104, 2, 0]);
        put(&mut bytes, &[0, 0, 0xfedf_ffff, 0]);
        put(&mut bytes, &[0xfef0_0000, 0, 0xffff_ffff, 0x7f]);
        // DMA entries left, the last one.
        put(&mut bytes, &[3 | 1 << 16, 0, 65535]);
        bytes
    }

    #[test]
    fn ranges_and_page_size_of_a_real_answer_are_found() {
        let limits = parse_iommu(&iommu_info()).unwrap();
        assert!(limits.check(0, 4096).is_ok());
        assert!(limits.check(0, 512).is_err());
        assert!(limits.check(0xfee0_0000, 4096).is_err());
        assert!(limits.check(0x7f_ffff_f000, 4096).is_ok());
        assert!(limits.check(0x80_0000_0000, 4096).is_err());
    }

    #[test]
    fn a_region_with_sparse_areas_is_read() {
        let mut bytes = Vec::new();
        // argsz, flags (all), index, first capability, size, offset.
        put(&mut bytes, &[96, 0xf, 0, 32, 0x4000, 0, 0, 0x100]);
        put(&mut bytes, &[3 | 1 << 16, 40]);
        put(&mut bytes, &[1 | 1 << 16, 0, 2, 0]);
        put(&mut bytes, &[0, 0, 0x2000, 0, 0x3000, 0, 0x1000, 0]);
        let region = VfioRegion::parse(&bytes).unwrap();
        assert_eq!((region.len_bytes, region.offset), (0x4000, 0x100 << 32));
        assert_eq!(region.sparse, Some(vec![(0, 0x2000), (0x3000, 0x1000)]));
        // Without the flag the chain is not looked at.
        bytes[4] = 7;
        assert_eq!(VfioRegion::parse(&bytes).unwrap().sparse, None);
    }

    #[test]
    fn a_chain_that_goes_back_or_counts_too_far_ends() {
        let good = iommu_info();
        let with = |at: usize, value: u32| {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            parse_iommu(&bytes)
        };
        let ranges_at = 56;
        // The migration capability points to itself: the ranges behind it are not found.
        let limits = with(28, 24).unwrap();
        assert!(limits.check(0xfee0_0000, 4096).is_ok());
        assert_eq!(with(ranges_at + 8, u32::MAX), None);
        assert_eq!(with(ranges_at + 8, 4), None);
        assert!(with(16, u32::MAX).is_some());
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        for seed in 0..4000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut bytes = iommu_info();
            for _ in 0..rng.random_range(1..6) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
            bytes.truncate(rng.random_range(0..=bytes.len()));
            let _ = parse_iommu(&bytes).map(|limits| limits.check(1 << 32, 2 << 20));
            let _ = VfioRegion::parse(&bytes);
        }
    }
}
