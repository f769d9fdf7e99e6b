//! What a controller and its namespace say of themselves, checked.

use std::ffi::c_char;

use spdk_sys as ffi;

use super::attach::Attached;
use crate::error::{Error, ErrorKind, Result};

/// A controller and the namespace that is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpdkControllerInfo {
    /// Model number.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Firmware revision.
    pub firmware: String,
    /// Version of the specification that it follows.
    pub version: String,
    /// The subsystem's name.
    pub subnqn: String,
    /// I/O queue pairs that it grants.
    pub queues: u16,
    /// Most entries of an I/O queue.
    pub max_queue_entries: u32,
    /// Written data may be lost with power until a flush.
    pub volatile_write_cache: bool,
    /// The namespace.
    pub nsid: u32,
    /// Its size in blocks.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Most bytes of one command.
    pub max_transfer_bytes: u32,
    /// Blocks between boundaries that commands do not cross; 0 for none.
    pub boundary_blocks: u32,
    /// The namespace is write protected.
    pub read_only: bool,
    /// Write zeroes is offered.
    pub write_zeroes: bool,
    /// Deallocate is offered.
    pub deallocate: bool,
}

fn text<const N: usize>(field: &[c_char; N]) -> String {
    let bytes: Vec<u8> = field
        .iter()
        .map(|&c| c.cast_unsigned())
        .take_while(|&byte| byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// What a controller and its namespace say, checked.
pub(super) fn describe(attached: &Attached, nsid: Option<u32>) -> Result<SpdkControllerInfo> {
    let mut about = ffi::xtent_spdk_ctrlr_info::default();
    // SAFETY: an attached controller, and a place for the answer.
    unsafe { ffi::xtent_spdk_ctrlr_info(attached.0, &raw mut about) };
    if about.discovery {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "this is a discovery service, which has no namespaces: `xtent list` shows what it offers",
        ));
    }
    let nsid = choose_namespace(attached, nsid)?;
    // SAFETY: as above.
    let ns = unsafe { ffi::spdk_nvme_ctrlr_get_ns(attached.0, nsid) };
    if ns.is_null() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("there is no namespace {nsid}"),
        ));
    }
    let mut space = ffi::xtent_spdk_ns_info::default();
    // SAFETY: controller and namespace are attached, and there is a place for the answer.
    unsafe { ffi::xtent_spdk_ns_info(attached.0, ns, &raw mut space) };
    check_namespace(nsid, &space)?;
    let (major, minor) = (about.version >> 16, about.version >> 8 & 0xff);
    Ok(SpdkControllerInfo {
        model: text(&about.model),
        serial: text(&about.serial),
        firmware: text(&about.firmware),
        version: format!("{major}.{minor}.{}", about.version & 0xff),
        subnqn: text(&about.subnqn),
        queues: about.queues,
        max_queue_entries: about.queue_entries.max(2),
        volatile_write_cache: about.volatile_write_cache,
        nsid,
        blocks: space.blocks,
        block_bytes: space.block_bytes,
        max_transfer_bytes: space.max_transfer_bytes.max(space.block_bytes),
        boundary_blocks: space.boundary_blocks,
        read_only: space.read_only,
        write_zeroes: space.write_zeroes,
        deallocate: space.deallocate,
    })
}

fn choose_namespace(attached: &Attached, wanted: Option<u32>) -> Result<u32> {
    let mut active = Vec::new();
    // SAFETY: an attached controller.
    let mut next = unsafe { ffi::spdk_nvme_ctrlr_get_first_active_ns(attached.0) };
    while next != 0 && active.len() < 4096 {
        active.push(next);
        // SAFETY: as above.
        next = unsafe { ffi::spdk_nvme_ctrlr_get_next_active_ns(attached.0, next) };
    }
    let names: Vec<_> = active.iter().take(16).map(ToString::to_string).collect();
    let names = names.join(", ");
    match (wanted, &active[..]) {
        (Some(nsid), _) if active.contains(&nsid) => Ok(nsid),
        (Some(nsid), []) => Err(Error::new(
            ErrorKind::NotFound,
            format!("there is no namespace {nsid}: the controller has none"),
        )),
        (Some(nsid), _) => Err(Error::new(
            ErrorKind::NotFound,
            format!("there is no namespace {nsid}: the controller has {names}"),
        )),
        (None, [only]) => Ok(*only),
        (None, []) => Err(Error::new(
            ErrorKind::NotFound,
            "the controller has no namespace",
        )),
        (None, _) => Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "the controller has the namespaces {names}: add one, as in `,nsid={}`",
                active[0]
            ),
        )),
    }
}

fn check_namespace(nsid: u32, space: &ffi::xtent_spdk_ns_info) -> Result<()> {
    let bytes = space.block_bytes;
    let why = if space.csi != 0 {
        format!(
            "it has the command set {} (zoned, or keys and values)",
            space.csi
        )
    } else if space.protection {
        "it is formatted with protection information".to_owned()
    } else if space.metadata_bytes != 0 {
        format!("each block has {} bytes of metadata", space.metadata_bytes)
    } else if !(512..=65_536).contains(&bytes) || !bytes.is_power_of_two() {
        format!("its blocks have {bytes} bytes")
    } else if space.blocks == 0 || space.blocks.checked_mul(bytes.into()).is_none() {
        format!("it claims {} blocks", space.blocks)
    } else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("namespace {nsid} cannot be used: {why}"),
    ))
}

/// Whether the namespace is still the one that the queues were made for.
pub(super) fn same_namespace(
    before: &SpdkControllerInfo,
    ctrlr: *mut ffi::spdk_nvme_ctrlr,
) -> bool {
    if ctrlr.is_null() {
        return false;
    }
    describe(&Attached(ctrlr), Some(before.nsid)).is_ok_and(|now| {
        (now.blocks, now.block_bytes) == (before.blocks, before.block_bytes)
            && now.max_transfer_bytes >= before.max_transfer_bytes
    })
}
