//! What the controller says of itself: identify pages and log pages.

use rand::Rng;
use rand::rngs::SmallRng;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::bits::low16;
use super::namespace::EmuNamespace;
use super::offer::{
    CRITICAL_TEMPERATURE_K, ControllerOffer, ERROR_LOG_ENTRIES, EVENT_REQUESTS,
    WARNING_TEMPERATURE_K,
};
use super::registers::VERSION;
use crate::nvme::spec::{
    IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, IdentifyNvmController, LPA_EXTENDED,
    LbaFormat, NOTICE_NAMESPACE, NSFEAT_OPTIMAL, OACS_DOORBELL_BUFFER_CONFIG,
    ONCS_DATASET_MANAGEMENT, ONCS_WRITE_ZEROES, SGLS_DWORD_ALIGNMENT, VWC_PRESENT,
};

/// Namespace attributes: currently write protected (NVM, figure 97, byte 99).
const NSATTR_AT: usize = 99;
/// Namespace globally unique identifier (byte 104).
const NGUID_AT: usize = 104;
/// A deallocated block reads as zeroes, and write zeroes may deallocate.
const DLFEAT: u8 = 1 | 1 << 3;

pub(super) type IdentifyPage = [u8; IDENTIFY_BYTES];

fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [b' '; N];
    for (to, from) in out.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    out
}

/// A number of blocks as the specification counts them; 0 stays.
fn zero_based(blocks: u32) -> U16 {
    U16::new(u16::try_from(blocks.saturating_sub(1)).unwrap_or(u16::MAX))
}

pub(super) fn controller(offer: &ControllerOffer, namespaces: usize) -> IdentifyPage {
    let mut page = IdentifyController::new_zeroed();
    page.sn = padded(&offer.serial);
    page.mn = padded(&offer.model);
    page.fr = padded(&offer.firmware);
    page.mdts = offer.mdts;
    page.ver = U32::new(VERSION);
    if offer.shadow_doorbells {
        page.oacs = U16::new(OACS_DOORBELL_BUFFER_CONFIG);
    }
    page.acl = low16(u32::from(offer.abort_limit) - 1).to_le_bytes()[0];
    page.aerl = EVENT_REQUESTS - 1;
    page.oaes = U32::new(NOTICE_NAMESPACE);
    page.elpe = ERROR_LOG_ENTRIES - 1;
    page.lpa = LPA_EXTENDED;
    // One slot, which is read-only.
    page.frmw = 1 << 1 | 1;
    page.wctemp = U16::new(WARNING_TEMPERATURE_K);
    page.cctemp = U16::new(CRITICAL_TEMPERATURE_K);
    page.awun = zero_based(offer.atomic.write_blocks);
    page.awupf = zero_based(offer.atomic.power_fail_blocks);
    page.sqes = 0x66;
    page.cqes = 0x44;
    page.nn = U32::new(u32::try_from(namespaces).unwrap_or(u32::MAX));
    let mut oncs = 0;
    if offer.dataset_management {
        oncs |= ONCS_DATASET_MANAGEMENT;
    }
    if offer.write_zeroes {
        oncs |= ONCS_WRITE_ZEROES;
    }
    page.oncs = U16::new(oncs);
    if offer.sgl {
        page.sgls = U32::new(SGLS_DWORD_ALIGNMENT);
    }
    // Bits 1 and 2: a flush may name all namespaces at once.
    page.vwc = 3 << 1;
    if offer.volatile_write_cache {
        page.vwc |= VWC_PRESENT;
    }
    zerocopy::transmute!(page)
}

/// As the NVM command set describes it.
pub(super) fn nvm_controller(offer: &ControllerOffer) -> IdentifyPage {
    let mut page = IdentifyNvmController::new_zeroed();
    page.dmrl = offer.dataset.ranges;
    page.dmrsl = U32::new(offer.dataset.range_blocks);
    page.dmsl = U64::new(offer.dataset.blocks);
    zerocopy::transmute!(page)
}

pub(super) fn namespace(
    offer: &ControllerOffer,
    namespace: &EmuNamespace,
    nsid: u32,
) -> IdentifyPage {
    let mut page = IdentifyNamespace::new_zeroed();
    page.nsze = U64::new(namespace.blocks);
    page.ncap = page.nsze;
    page.nuse = page.nsze;
    page.dlfeat = DLFEAT;
    page.noiob = U16::new(offer.noiob_blocks);
    page.nabsn = zero_based(offer.atomic.boundary_blocks);
    page.nabspf = page.nabsn;
    if offer.dataset.granularity_blocks != 0 {
        page.nsfeat = NSFEAT_OPTIMAL;
        page.npdg = zero_based(offer.dataset.granularity_blocks);
        page.npda = zero_based(offer.dataset.alignment_blocks);
    }
    page.lbaf[0] = LbaFormat {
        metadata_bytes: U16::new(0),
        data_shift: namespace.lba_bytes.trailing_zeros().to_le_bytes()[0],
        performance: 0,
    };
    let bytes = page.as_mut_bytes();
    bytes[NSATTR_AT] = u8::from(namespace.read_only);
    bytes[NGUID_AT..NGUID_AT + 16].copy_from_slice(&nguid(offer, nsid));
    zerocopy::transmute!(page)
}

/// A stable identifier from the serial number: FNV-1a in the vendor's part, the namespace at the
/// end.
fn nguid(offer: &ControllerOffer, nsid: u32) -> [u8; 16] {
    let hash = offer
        .serial
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let mut out = [0; 16];
    out[..8].copy_from_slice(&hash.to_be_bytes());
    out[12..].copy_from_slice(&nsid.to_be_bytes());
    out
}

pub(super) fn active_namespaces(namespaces: usize, after: u32) -> IdentifyPage {
    let mut page = [0; IDENTIFY_BYTES];
    let last = u32::try_from(namespaces).unwrap_or(u32::MAX);
    let ids = (1..=last).filter(|&id| id > after);
    for (slot, id) in page.chunks_exact_mut(4).zip(ids) {
        slot.copy_from_slice(&id.to_le_bytes());
    }
    page
}

/// Namespace identification descriptors: an NGUID and the command set (NVM).
pub(super) fn descriptors(offer: &ControllerOffer, nsid: u32) -> IdentifyPage {
    let mut page = [0; IDENTIFY_BYTES];
    page[0] = 2;
    page[1] = 16;
    page[4..20].copy_from_slice(&nguid(offer, nsid));
    page[20] = 4;
    page[21] = 1;
    page
}

/// A fault: all garbage, or some bytes of the first 256 and of the feature fields replaced.
pub(super) fn spoil(page: &mut IdentifyPage, rng: &mut SmallRng) {
    if rng.random_bool(0.3) {
        rng.fill(&mut page[..]);
        return;
    }
    for _ in 0..rng.random_range(1..32) {
        let at = match rng.random_range(0..3) {
            0 => rng.random_range(0..192),
            1 => rng.random_range(512..544),
            _ => rng.random_range(0..IDENTIFY_BYTES),
        };
        page[at] = rng.random();
    }
}

/// Firmware slot information (section 5.16.1.4), 512 bytes: slot 1 is active.
pub(super) fn firmware_log(offer: &ControllerOffer) -> Vec<u8> {
    let mut page = vec![0; 512];
    page[0] = 1;
    page[8..16].copy_from_slice(&padded::<8>(&offer.firmware));
    page
}
