//! A controller regardless of the disk's content: identity, health, unusable namespaces included.

use std::fs;
use std::sync::Arc;

use super::engine::TargetEngine;
use super::open::{
    OpenController, Parts, access_of, controller_of, heap_of, memory_of, namespace_of,
};
use super::{Target, TargetKind, TargetOptions, TargetSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::Heap;
use crate::nvme::{
    AtomicLimits, Controller, ControllerInfo, ErrorEntry, Event, FirmwareSlots, NamespaceInfo,
    SmartInfo, admin_command_names, nvm_command_names, sgl_names,
};
use crate::sys::HeldFile;

/// The controller of a target, up and running. Its namespaces need not be fit for use.
///
/// ```
/// use xtent::internals::target::Drive;
/// use xtent::target::TargetOptions;
/// # fn main() -> xtent::Result<()> {
/// let drive = Drive::open("ram:64M,inline", &TargetOptions::default())?;
/// let smart = drive.smart()?;
/// println!("{}: {} K", drive.info().model, smart.temperature_k);
/// # assert!(smart.critical_warning.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Drive {
    controller: Arc<Controller>,
    heap: Heap,
    spec: TargetSpec,
    options: TargetOptions,
    words: String,
    held: Option<Arc<HeldFile>>,
}

/// Writes that are all or nothing, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct AtomicSummary {
    /// Against other commands.
    pub normal_blocks: u32,
    /// Against loss of power.
    pub power_fail_blocks: u32,
    /// Of compare and write.
    pub compare_and_write_blocks: u32,
    /// Writes across multiples of so many blocks are not atomic; 0 for no boundaries.
    pub boundary_blocks: u32,
    /// The first block after a boundary.
    pub boundary_offset_blocks: u16,
    /// Boundaries against loss of power; 0 for none.
    pub power_fail_boundary_blocks: u32,
}

impl From<AtomicLimits> for AtomicSummary {
    fn from(limits: AtomicLimits) -> Self {
        Self {
            normal_blocks: limits.normal_blocks,
            power_fail_blocks: limits.power_fail_blocks,
            compare_and_write_blocks: limits.compare_and_write_blocks,
            boundary_blocks: limits.boundary_blocks,
            boundary_offset_blocks: limits.boundary_offset_blocks,
            power_fail_boundary_blocks: limits.power_fail_boundary_blocks,
        }
    }
}

/// A format that a namespace can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FormatSummary {
    /// Bytes of a block; 0 for one that is not available.
    pub lba_bytes: u32,
    /// Metadata bytes of a block.
    pub metadata_bytes: u16,
    /// Relative performance: 0 is best, 3 is degraded.
    pub performance: u8,
}

/// A namespace of a drive.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct NamespaceSummary {
    /// Its id.
    pub nsid: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Size in blocks.
    pub blocks: u64,
    /// Blocks that can be allocated.
    pub capacity_blocks: u64,
    /// Blocks that are allocated.
    pub used_blocks: u64,
    /// Bytes of a block.
    pub lba_bytes: u32,
    /// Metadata bytes of a block.
    pub metadata_bytes: u16,
    /// Type of protection information; 0 for none.
    pub protection: u8,
    /// The formats that it can have.
    pub formats: Vec<FormatSummary>,
    /// Index of the one in use.
    pub format: usize,
    /// Blocks between boundaries that commands do not cross; 0 when there are none.
    pub boundary_blocks: u16,
    /// Writes that are all or nothing.
    pub atomic: AtomicSummary,
    /// Globally unique identifier, in hexadecimal; `None` where there is none.
    pub nguid: Option<String>,
    /// IEEE extended unique identifier, in hexadecimal; `None` where there is none.
    pub eui64: Option<String>,
    /// The namespace is write protected.
    pub write_protected: bool,
    /// Why it cannot be used; `None` when it can.
    pub unusable: Option<String>,
}

impl NamespaceSummary {
    fn of(info: &NamespaceInfo) -> Self {
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
        Self {
            nsid: info.nsid,
            size_bytes: info.len_bytes(),
            blocks: info.blocks,
            capacity_blocks: info.capacity_blocks,
            used_blocks: info.used_blocks,
            lba_bytes: info.block_bytes,
            metadata_bytes: info.metadata_bytes,
            protection: info.protection,
            formats: info
                .formats
                .iter()
                .map(|format| FormatSummary {
                    lba_bytes: format.block_bytes,
                    metadata_bytes: format.metadata_bytes,
                    performance: format.performance,
                })
                .collect(),
            format: info.format,
            boundary_blocks: info.optimal_boundary_blocks,
            atomic: info.atomic.into(),
            nguid: info.nguid.map(|id| hex(&id)),
            eui64: info.eui64.map(|id| hex(&id)),
            write_protected: info.read_only,
            unusable: info.unusable.clone(),
        }
    }
}

/// Hugepages of 2 MiB on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HugePageCount {
    /// Reserved.
    pub total: u64,
    /// Free among them.
    pub free: u64,
}

impl HugePageCount {
    pub(crate) fn now() -> Option<Self> {
        let read = |name: &str| -> Option<u64> {
            let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
            fs::read_to_string(path).ok()?.trim().parse().ok()
        };
        Some(Self {
            total: read("nr_hugepages")?,
            free: read("free_hugepages")?,
        })
    }
}

/// A controller and its namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct DriveInfo {
    /// The target as it was opened.
    pub target: String,
    /// What stands behind it, in words.
    pub engine: String,
    /// What the DMA memory is made of: `hugepages`, `locked pages` or `pageable memory`.
    pub memory: String,
    /// Hugepages of the host; `None` where it has no such thing.
    pub huge_pages: Option<HugePageCount>,
    /// PCI address; `None` for a controller that is not on the PCI bus.
    pub pci_address: Option<String>,
    /// NUMA node that it is near to; `None` where that is not known.
    pub numa_node: Option<u32>,
    /// IOMMU group; `None` for what has none.
    pub iommu_group: Option<u32>,
    /// PCI vendor id.
    pub vendor_id: u16,
    /// Model string.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Firmware revision.
    pub firmware: String,
    /// Controller id, unique in its subsystem.
    pub controller_id: u16,
    /// The subsystem's qualified name; empty where it is not said.
    pub subsystem_nqn: String,
    /// NVMe version of the controller, like `1.4.0`.
    pub nvme_version: String,
    /// Largest single command in bytes; `None` when the controller sets no limit.
    pub max_transfer_bytes: Option<u32>,
    /// I/O queue pairs that were granted.
    pub max_queue_pairs: u16,
    /// Most entries of a queue.
    pub max_queue_entries: u32,
    /// There is a volatile write cache, and it is on.
    pub volatile_write_cache: bool,
    /// Shadow doorbells are in use.
    pub shadow_doorbells: bool,
    /// What it says of scatter gather lists; empty for no support.
    pub sgl: Vec<String>,
    /// Optional admin commands, by name (OACS).
    pub admin_commands: Vec<String>,
    /// Optional NVM commands, by name (ONCS).
    pub nvm_commands: Vec<String>,
    /// Writes that are all or nothing, where a namespace does not say otherwise.
    pub atomic: AtomicSummary,
    /// Entries of the error log.
    pub error_log_entries: u16,
    /// Asynchronous event requests that it bears.
    pub event_requests: u16,
    /// Firmware slots.
    pub firmware_slots: u8,
    /// Composite temperature in kelvins; `None` where it is not known.
    pub temperature_k: Option<u16>,
    /// Temperature in kelvins from which it warns.
    pub warning_temperature_k: Option<u16>,
    /// Temperature in kelvins from which it may fail.
    pub critical_temperature_k: Option<u16>,
    /// Bytes of NVM in the subsystem; `None` where it is not said.
    pub total_bytes: Option<u64>,
    /// Bytes of it that no namespace has.
    pub unallocated_bytes: Option<u64>,
    /// The active namespaces.
    pub namespaces: Vec<NamespaceSummary>,
    /// There are more of them than are listed.
    pub more_namespaces: bool,
}

impl Drive {
    /// Opens the controller of a target. A namespace that the target names is looked for by
    /// [`Drive::target`] only.
    ///
    /// # Errors
    /// Those of [`Target::open`], except for a faulty namespace; [`ErrorKind::Unsupported`] for
    /// `uring:` and `spdk:` targets, whose controller the kernel or SPDK has.
    pub fn open(target: &str, options: &TargetOptions) -> Result<Self> {
        let spec = TargetSpec::parse(target)?;
        Self::open_spec(spec, options).map_err(|error| error.during("open").on_device(target))
    }

    fn open_spec(spec: TargetSpec, options: &TargetOptions) -> Result<Self> {
        let who = match spec.kind {
            TargetKind::Uring(_) => Some(
                "the kernel has the controller of this disk: ask nvme-cli, or give the disk to xtent (pci:)",
            ),
            TargetKind::Spdk { .. } => Some(
                "SPDK has this controller: ask spdk_nvme_identify, or its target for the health of its disks",
            ),
            _ => None,
        };
        if let Some(who) = who {
            return Err(Error::new(ErrorKind::Unsupported, who));
        }
        let heap = heap_of(&spec, options);
        let access = access_of(&spec, options);
        let OpenController {
            controller,
            words,
            held,
        } = controller_of(&spec, options, access, &heap)?;
        Ok(Self {
            controller,
            held,
            heap,
            spec,
            options: options.clone(),
            words,
        })
    }

    /// The namespace that the target names, or the only one, for use.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] or [`ErrorKind::InvalidInput`] when there is none or not only one,
    /// [`ErrorKind::Unsupported`] for one that cannot be used, by name of the reason.
    pub fn target(&self) -> Result<Target> {
        let open = || {
            let nsid = namespace_of(&self.spec, &self.controller.info())?;
            let controller = Arc::clone(&self.controller);
            let parts = Parts {
                heap: self.heap.clone(),
                engine: TargetEngine::Nvme {
                    controller,
                    nsid,
                    share: Arc::default(),
                },
                words: Some(self.words.clone()),
                held: self.held.clone(),
            };
            Target::on_engine(&self.spec, &self.options, parts)
        };
        open().map_err(|error| error.during("open").on_device(&*self.spec.text))
    }

    /// What it said of itself last, and its temperature now.
    pub fn info(&self) -> DriveInfo {
        let info = self.controller.info();
        let temperature_k = self.smart().ok().map(|smart| smart.temperature_k);
        self.describe(&info, temperature_k.filter(|&kelvins| kelvins != 0))
    }

    fn describe(&self, info: &ControllerInfo, temperature_k: Option<u16>) -> DriveInfo {
        let pci = match self.spec.kind {
            TargetKind::Pci { address, .. } => Some(address),
            _ => None,
        };
        let narrow = |bytes: u128| u64::try_from(bytes).unwrap_or(u64::MAX);
        DriveInfo {
            target: self.spec.text.clone(),
            engine: self.words.clone(),
            memory: memory_of(&self.heap).to_owned(),
            huge_pages: HugePageCount::now(),
            pci_address: pci.map(|address| address.to_string()),
            numa_node: pci.and_then(|address| address.numa_node()),
            iommu_group: pci.and_then(|address| address.iommu_group()),
            vendor_id: info.vendor_id,
            model: info.model.clone(),
            serial: info.serial.clone(),
            firmware: info.firmware.clone(),
            controller_id: info.controller_id,
            subsystem_nqn: info.subsystem_nqn.clone(),
            nvme_version: info.version.to_string(),
            max_transfer_bytes: info.max_transfer_bytes,
            max_queue_pairs: info.queues,
            max_queue_entries: info.max_queue_entries,
            volatile_write_cache: info.volatile_write_cache,
            shadow_doorbells: info.shadow_doorbells,
            sgl: sgl_names(info.sgl_support),
            admin_commands: admin_command_names(info.admin_commands),
            nvm_commands: nvm_command_names(info.nvm_commands),
            atomic: info.atomic.into(),
            error_log_entries: info.error_log_entries,
            event_requests: info.event_requests,
            firmware_slots: info.firmware_slots,
            temperature_k,
            warning_temperature_k: info.warning_temperature_k,
            critical_temperature_k: info.critical_temperature_k,
            total_bytes: info.total_bytes.map(narrow),
            unallocated_bytes: info.unallocated_bytes.map(narrow),
            namespaces: info.namespaces.iter().map(NamespaceSummary::of).collect(),
            more_namespaces: info.more_namespaces,
        }
    }

    /// SMART / health information.
    ///
    /// # Errors
    /// What the controller says, or that it does not answer.
    pub fn smart(&self) -> Result<SmartInfo> {
        self.controller.smart()
    }

    /// The newest entries of the error log, at most `most`, newest first.
    ///
    /// # Errors
    /// What the controller says, or that it does not answer.
    pub fn error_log(&self, most: usize) -> Result<Vec<ErrorEntry>> {
        self.controller.error_log(most)
    }

    /// The firmware slots.
    ///
    /// # Errors
    /// What the controller says, or that it does not answer.
    pub fn firmware_slots(&self) -> Result<FirmwareSlots> {
        self.controller.firmware_slots()
    }

    /// What the controller reported since the last call, oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.controller.events()
    }
}
