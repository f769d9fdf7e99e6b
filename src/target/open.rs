//! Targets: opening them, and what they are.

use std::path::Path;
use std::sync::Arc;

use super::claims::Identity;
use super::engine::TargetEngine;
use super::image::{self, ImageAccess};
use super::part::part_of;
use super::shared::{Target, TargetShared};
use super::{ControllerMode, TargetInfo, TargetKind, TargetOptions, TargetSpec};
use crate::block::{BlockRange, Wait};
use crate::device::Device;
use crate::device::emu::{EmuConfig, EmuDevice, Medium, Mode};
use crate::device::vfio::{VfioDevice, VfioOptions};
use crate::device::vfio_user::{VfioUserDevice, VfioUserOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{Backing, Heap, HeapConfig};
use crate::nvme::{Controller, ControllerInfo, ControllerOptions, Event};
use crate::sys::{FileId, HeldFile, file_serial};

/// A target's parts, up and running.
pub(crate) struct Parts {
    pub(crate) heap: Heap,
    pub(crate) engine: TargetEngine,
    /// What the engine is, where it does not know itself.
    pub(crate) words: Option<String>,
    pub(crate) held: Option<Arc<HeldFile>>,
}

impl Target {
    /// Opens a target such as `image:disk.img` or `ram:1G` (see [`TargetSpec`]).
    ///
    /// # Errors
    /// A target that is wrong, missing, in use or of a kind that this build cannot open; a
    /// controller that does not come up.
    ///
    /// ```
    /// use xtent::target::{Target, TargetOptions};
    /// # fn main() -> xtent::Result<()> {
    /// let target = Target::open("ram:64M,inline", &TargetOptions::default())?;
    /// println!("{}: {} bytes", target.info().model, target.info().capacity_bytes);
    /// # assert_eq!(target.info().capacity_bytes, 64 << 20);
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(target: &str, options: &TargetOptions) -> Result<Self> {
        let spec = TargetSpec::parse(target)?;
        Self::open_spec(&spec, options).map_err(|error| error.during("open").on_device(target))
    }

    /// Opens a target that was parsed before.
    ///
    /// # Errors
    /// As [`Target::open`].
    #[doc(hidden)]
    pub fn open_spec(spec: &TargetSpec, options: &TargetOptions) -> Result<Self> {
        let access = access_of(spec, options);
        if let TargetKind::Spdk { id, nsid } = &spec.kind {
            // SPDK says where the memory comes from.
            let config = heap_config_of(spec, options);
            let (engine, heap) = super::spdk::open(id, *nsid, config, wait_of(spec, options))?;
            let parts = Parts {
                heap,
                engine,
                words: None,
                held: None,
            };
            return Self::on_engine(spec, options, parts);
        }
        let heap = heap_of(spec, options);
        if let TargetKind::Uring(path) = &spec.kind {
            let (disk, held) = super::uring::open(spec, path.as_ref(), access, &heap)?;
            let parts = Parts {
                heap,
                engine: TargetEngine::Uring(disk),
                words: None,
                held: Some(held),
            };
            return Self::on_engine(spec, options, parts);
        }
        let opened = controller_of(spec, options, access, &heap)?;
        let nsid = namespace_of(spec, &opened.controller.info())?;
        let parts = Parts {
            heap,
            engine: TargetEngine::Nvme {
                controller: opened.controller,
                nsid,
                share: Arc::default(),
            },
            words: Some(opened.words),
            held: opened.held,
        };
        Self::on_engine(spec, options, parts)
    }

    /// The target on an engine that is there.
    pub(crate) fn on_engine(
        spec: &TargetSpec,
        options: &TargetOptions,
        parts: Parts,
    ) -> Result<Self> {
        let Parts {
            heap,
            engine,
            words,
            held,
        } = parts;
        let queue_depth = spec
            .queue_depth
            .unwrap_or(options.queue_depth)
            .clamp(1, 4095);
        let info = engine.info()?;
        let info = TargetInfo {
            target: spec.text.clone(),
            engine: words.unwrap_or(info.engine),
            read_only: info.read_only || access_of(spec, options).read_only,
            queue_depth,
            wait: wait_of(spec, options).name().to_owned(),
            controller: mode_name(spec, options).to_owned(),
            memory: memory_in_use(&heap).to_owned(),
            ..info
        };
        let identity = identity_of(spec, &engine, &info, held.as_deref());
        let mut target = Self {
            shared: Arc::new(TargetShared {
                identity,
                held,
                in_use: access_of(spec, options).in_use,
                engine,
                heap,
                name: spec.text.clone(),
                info,
                queue_depth: queue_depth as usize,
                command_timeout: options.command_timeout,
                wait: wait_of(spec, options),
                no_recovery: spec.no_recovery,
                no_replay: spec.no_replay,
                discard: spec.discard,
                stated_lba_bytes: spec.lba_bytes,
                memory_limit_bytes: options.memory_limit_bytes,
                range: BlockRange::WHOLE,
            }),
        };
        if let Some(part) = part_of(spec, &target.shared)? {
            let shared = Arc::get_mut(&mut target.shared).ok_or_else(|| {
                Error::new(
                    ErrorKind::Busy,
                    "the target is in use while it is being opened",
                )
            })?;
            shared.range = part.range;
            shared.info.capacity_bytes = part.len_bytes;
            shared.info.start_bytes = part.start_bytes;
            shared.info.partition = part.number;
        }
        Ok(target)
    }

    /// What the controller reported since the last call, oldest first: health warnings, namespaces
    /// that changed. Cheap where there is nothing; to be asked now and then by one thread.
    pub fn events(&self) -> Vec<Event> {
        match &self.shared.engine {
            TargetEngine::Nvme { controller, .. } => controller.events(),
            // The kernel keeps what the device reports to itself.
            TargetEngine::Uring(_) => Vec::new(),
            // So does SPDK, which acts on it.
            #[cfg(feature = "spdk")]
            TargetEngine::Spdk(_) => Vec::new(),
        }
    }

    /// The error of a raw operation that ended with a status: why writing to the file behind the
    /// target has stopped, where it has.
    #[doc(hidden)]
    pub fn raw_error(&self, status: crate::block::Status) -> Option<Error> {
        status.error().map(|error| self.shared.why(error))
    }

    /// What stands behind it.
    pub fn info(&self) -> &TargetInfo {
        &self.shared.info
    }
}

/// What a target is, however it was named.
fn identity_of(
    spec: &TargetSpec,
    engine: &TargetEngine,
    info: &TargetInfo,
    held: Option<&HeldFile>,
) -> Identity {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    if let Some(held) = held {
        let meta = held.file().metadata().ok();
        let device = meta.filter(|meta| meta.file_type().is_block_device());
        return match device {
            Some(meta) => Identity::Block(meta.rdev()),
            None => Identity::File(held.id(), 0),
        };
    }
    match (&spec.kind, engine) {
        (TargetKind::VfioUser { socket, .. }, _) => {
            let inside = socket.join("cntrl");
            let meta = std::fs::metadata(&inside).or_else(|_| std::fs::metadata(socket));
            match meta {
                Ok(meta) => Identity::File(FileId::of(&meta), info.nsid),
                Err(_) => Identity::Named(socket.display().to_string(), info.nsid),
            }
        }
        (TargetKind::Pci { address, .. }, _) => Identity::Named(address.to_string(), info.nsid),
        (TargetKind::Spdk { id, .. }, _) => {
            // By another host name it is the same subsystem.
            let mut id = id.clone();
            id.hostnqn = None;
            Identity::Named(format!("{id:?}"), info.nsid)
        }
        (_, TargetEngine::Nvme { controller, .. }) => {
            Identity::Memory(Arc::as_ptr(controller).addr())
        }
        _ => Identity::Named(spec.text.clone(), info.nsid),
    }
}

/// How an embedded controller runs; `none` for a target without one.
fn mode_name(spec: &TargetSpec, options: &TargetOptions) -> &'static str {
    match spec.kind {
        TargetKind::Image(_) | TargetKind::Ram { .. } => match mode_of(spec, options) {
            ControllerMode::Inline => "inline",
            ControllerMode::Threaded => "threaded",
        },
        _ => "none",
    }
}

/// How an embedded controller runs: as the target says, and else as the options do. A thread that
/// sleeps does not do the controller's work, so waits that sleep need one with a thread of its own.
fn mode_of(spec: &TargetSpec, options: &TargetOptions) -> ControllerMode {
    match spec.controller {
        Some(mode) => mode,
        None if wait_of(spec, options) == Wait::Poll => options.controller,
        None => ControllerMode::Threaded,
    }
}

/// A target on a device that is open already, for tests with devices of their own.
///
/// # Errors
/// As [`Target::open`].
pub fn target_on_device(
    device: Arc<dyn Device>,
    options: &TargetOptions,
    controller: ControllerOptions,
) -> Result<Target> {
    let spec = TargetSpec::parse("ram:1M")?;
    let heap = heap_of(&spec, options);
    let controller = Controller::open(device, &heap, controller)?;
    let nsid = namespace_of(&spec, &controller.info())?;
    let parts = Parts {
        heap,
        engine: TargetEngine::Nvme {
            controller,
            nsid,
            share: Arc::default(),
        },
        words: None,
        held: None,
    };
    Target::on_engine(&spec, options, parts)
}

/// How its threads wait.
fn wait_of(spec: &TargetSpec, options: &TargetOptions) -> Wait {
    spec.wait.unwrap_or(options.wait)
}

/// How its file may be used.
pub(crate) fn access_of(spec: &TargetSpec, options: &TargetOptions) -> ImageAccess {
    let in_use = options.allow_in_use || spec.allow_in_use;
    ImageAccess {
        read_only: options.read_only || spec.read_only || spec.no_recovery || in_use,
        in_use,
    }
}

/// Its memory.
pub(crate) fn heap_of(spec: &TargetSpec, options: &TargetOptions) -> Heap {
    Heap::new(heap_config_of(spec, options))
}

fn heap_config_of(spec: &TargetSpec, options: &TargetOptions) -> HeapConfig {
    HeapConfig {
        huge_pages: options.huge_pages,
        limit_bytes: options.memory_limit_bytes,
        shareable: matches!(spec.kind, TargetKind::VfioUser { .. }),
        ..HeapConfig::default()
    }
}

/// As [`memory_of`]; a heap without memory, as those of engines without rings in it are at first,
/// gets some.
fn memory_in_use(heap: &Heap) -> &'static str {
    if heap.backing().is_none() {
        // A failure is told to the first caller who needs memory.
        drop(heap.alloc(1, 1));
    }
    memory_of(heap)
}

/// What that is made of.
pub(crate) fn memory_of(heap: &Heap) -> &'static str {
    match heap.backing() {
        Some(Backing::Huge) => "hugepages",
        Some(Backing::Locked) => "locked pages",
        Some(Backing::Pageable) => "pageable memory",
        None => "none yet",
    }
}

/// A controller, up and running.
pub(crate) struct OpenController {
    pub(crate) controller: Arc<Controller>,
    /// In words what it is.
    pub(crate) words: String,
    /// The file behind it.
    pub(crate) held: Option<Arc<HeldFile>>,
}

/// The controller of a target, up and running.
pub(crate) fn controller_of(
    spec: &TargetSpec,
    options: &TargetOptions,
    access: ImageAccess,
    heap: &Heap,
) -> Result<OpenController> {
    let (device, words, held) = device_of(spec, options, access)?;
    let controller_options = ControllerOptions {
        shadow_doorbells: spec.shadow_doorbells.unwrap_or(true),
        ..ControllerOptions::default()
    };
    let controller = Controller::open(device, heap, controller_options)?;
    Ok(OpenController {
        controller,
        words: format!("xtent's own NVMe driver over {words}"),
        held,
    })
}

/// A device, in words what it is, and the file behind it.
type OpenDevice = (Arc<dyn Device>, String, Option<Arc<HeldFile>>);

/// The device of a target.
fn device_of(
    spec: &TargetSpec,
    options: &TargetOptions,
    access: ImageAccess,
) -> Result<OpenDevice> {
    if let TargetKind::Pci { address, .. } = &spec.kind {
        let device = VfioDevice::open(&address.to_string(), &VfioOptions::default())?;
        return Ok((device, format!("VFIO, on the PCI device {address}"), None));
    }
    if let TargetKind::VfioUser { socket, .. } = &spec.kind {
        let device = VfioUserDevice::open(socket, &VfioUserOptions::default())?;
        let words = format!("vfio-user, of the process that serves {}", socket.display());
        return Ok((device, words, None));
    }
    let (medium, words, held) = medium_of(spec, access)?;
    let device = EmuDevice::start(emu_config(spec, options, medium, held.as_deref(), access))?;
    Ok((device, format!("its embedded controller, {words}"), held))
}

/// The embedded controller that an `image:` or `ram:` target stands for, as it is to be served to
/// other processes ([`crate::device::vfio_user::Server`]): with a thread of its own, and doorbells
/// that fill one page.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a target without an embedded controller; those of opening its
/// medium.
pub fn controller_to_serve(spec: &TargetSpec) -> Result<EmuConfig> {
    if !matches!(spec.kind, TargetKind::Image(_) | TargetKind::Ram { .. }) {
        let detail =
            "only image: and ram: targets can be served: a controller of hardware serves itself";
        return Err(Error::new(ErrorKind::InvalidInput, detail).on_device(&*spec.text));
    }
    if spec.partition.is_some() || spec.offset_bytes.is_some() {
        let detail = "a whole image is served: give `part` or `offset` where the served controller is opened";
        return Err(Error::new(ErrorKind::InvalidInput, detail).on_device(&*spec.text));
    }
    let access = ImageAccess {
        read_only: spec.read_only || spec.allow_in_use,
        in_use: spec.allow_in_use,
    };
    let options = TargetOptions::default();
    medium_of(spec, access)
        .map(|(medium, _, held)| EmuConfig {
            max_io_queues: SERVED_QUEUES,
            interrupt_vectors: SERVED_QUEUES + 1,
            mode: Mode::Threaded,
            ..emu_config(spec, &options, medium, held.as_deref(), access)
        })
        .map_err(|error| error.during("open").on_device(&*spec.text))
}

/// With a cache line for each pair's doorbells, those of the admin queue and of so many fill a
/// page.
const SERVED_QUEUES: u16 = 63;

/// The namespace that a target names, or the only one.
pub(crate) fn namespace_of(spec: &TargetSpec, info: &ControllerInfo) -> Result<u32> {
    let (named, how) = match spec.kind {
        TargetKind::Pci { nsid, .. } => (nsid, "/"),
        TargetKind::VfioUser { nsid, .. } => (nsid, ",nsid="),
        _ => (None, "/"),
    };
    if let Some(nsid) = named {
        return Ok(nsid);
    }
    match &info.namespaces[..] {
        [only] => Ok(only.nsid),
        [] => Err(Error::new(
            ErrorKind::NotFound,
            "the controller has no active namespace",
        )),
        several => {
            let mut ids: Vec<_> = several
                .iter()
                .take(32)
                .map(|n| n.nsid.to_string())
                .collect();
            if several.len() > ids.len() {
                ids.push("...".to_owned());
            }
            Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the controller has the namespaces {}: name one, as in {}{how}{}",
                    ids.join(", "),
                    spec.text,
                    ids[0]
                ),
            ))
        }
    }
}

/// The medium of an embedded controller, in words what it is, and the file that it is.
fn medium_of(
    spec: &TargetSpec,
    access: ImageAccess,
) -> Result<(Medium, &'static str, Option<Arc<HeldFile>>)> {
    let later = |what: &str| {
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "this version cannot open {what} yet: give image:FILE, ram:SIZE, pci:ADDRESS or vfio-user:SOCKET"
            ),
        ))
    };
    match &spec.kind {
        TargetKind::Image(path) => {
            let held = Arc::new(image::open(path, access)?);
            let medium = Medium::held(Arc::clone(&held), access.read_only)?;
            Ok((medium, "which reads and writes a file", Some(held)))
        }
        TargetKind::Ram {
            capacity_bytes,
            load,
        } => {
            let mut medium = Medium::memory(*capacity_bytes);
            if let Some(path) = load {
                load_image(&mut medium, path)
                    .map_err(|error| error.at_path(path.as_os_str().as_encoded_bytes()))?;
            }
            Ok((medium, "which keeps its blocks in memory", None))
        }
        // These have no medium of ours, and are handled before.
        TargetKind::Pci { .. } | TargetKind::VfioUser { .. } | TargetKind::Uring(_) => {
            later("a disk as a medium")
        }
        TargetKind::Spdk { .. } => later("an SPDK controller as a medium"),
    }
}

/// Copies an image into memory, except its zeroes.
fn load_image(medium: &mut Medium, path: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt;
    const PIECE_BYTES: usize = 1 << 20;
    let access = ImageAccess {
        read_only: true,
        in_use: false,
    };
    let held = image::open(path, access)?;
    let file = held.file();
    let system = |e| Error::system("cannot read the image to load", e);
    let len = file.metadata().map_err(system)?.len();
    if len > medium.len_bytes() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "the image has {len} bytes and the memory {}: ask for more",
                medium.len_bytes()
            ),
        ));
    }
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    while at < len {
        let want = usize::try_from(len - at).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        let bytes = &mut piece[..want];
        file.read_exact_at(bytes, at).map_err(system)?;
        if bytes.iter().any(|&byte| byte != 0) {
            medium.write_at(at, bytes)?;
        }
        at += want as u64;
    }
    Ok(())
}

fn emu_config(
    spec: &TargetSpec,
    options: &TargetOptions,
    medium: Medium,
    held: Option<&HeldFile>,
    access: ImageAccess,
) -> EmuConfig {
    let defaults = EmuConfig::default();
    EmuConfig {
        lba_bytes: spec.lba_bytes.unwrap_or(defaults.lba_bytes),
        mdts: spec.mdts.unwrap_or(defaults.mdts),
        noiob_blocks: spec
            .noiob_blocks
            .and_then(|blocks| u16::try_from(blocks).ok())
            .unwrap_or(defaults.noiob_blocks),
        volatile_write_cache: spec
            .volatile_write_cache
            .unwrap_or(defaults.volatile_write_cache),
        read_only: access.read_only,
        shadow_doorbells: spec.shadow_doorbells.unwrap_or(false),
        max_queue_entries: 4096,
        max_io_queues: 128,
        mode: match mode_of(spec, options) {
            ControllerMode::Inline => Mode::Inline,
            ControllerMode::Threaded => Mode::Threaded,
        },
        serial: held.map_or(defaults.serial, |held| file_serial(held.id())),
        name: spec.text.clone(),
        medium,
        ..EmuConfig::default()
    }
}
