//! Targets: opening them, and what they are.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::engine::Engine;
use super::image::{self, ImageAccess};
use super::{ControllerMode, TargetInfo, TargetKind, TargetSpec, VolumeOptions};
use crate::block::Wait;
use crate::device::Device;
use crate::device::emu::{EmuConfig, EmuDevice, Medium, Mode};
use crate::device::vfio::{VfioDevice, VfioOptions};
use crate::device::vfio_user::{VfioUserDevice, VfioUserOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{Backing, Heap, HeapConfig};
use crate::nvme::{Controller, ControllerInfo, ControllerOptions, Event};

/// A controller's namespace, opened, whatever is on it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Target {
    pub(super) shared: Arc<TargetShared>,
}

#[derive(Debug)]
pub(super) struct TargetShared {
    pub(super) engine: Engine,
    pub(super) heap: Heap,
    pub(super) name: String,
    pub(super) info: TargetInfo,
    pub(super) queue_depth: usize,
    pub(super) command_timeout: Duration,
    pub(super) wait: Wait,
    pub(super) no_recovery: bool,
}

impl Target {
    /// Opens a target such as `image:disk.img` or `ram:1G` (see [`TargetSpec`]).
    ///
    /// # Errors
    /// A target that is wrong, missing, in use or of a kind that this build cannot open; a controller that
    /// does not come up.
    ///
    /// ```
    /// use xtent::volume::{Target, VolumeOptions};
    /// # fn main() -> xtent::Result<()> {
    /// let target = Target::open("ram:64M,inline", &VolumeOptions::default())?;
    /// println!("{}: {} bytes", target.info().model, target.info().capacity_bytes);
    /// # assert_eq!(target.info().capacity_bytes, 64 << 20);
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(target: &str, options: &VolumeOptions) -> Result<Self> {
        let spec = TargetSpec::parse(target)?;
        Self::open_spec(&spec, options).map_err(|error| error.during("open").on_device(target))
    }

    /// Opens a target that was parsed before.
    ///
    /// # Errors
    /// As [`Target::open`].
    #[doc(hidden)]
    pub fn open_spec(spec: &TargetSpec, options: &VolumeOptions) -> Result<Self> {
        let access = access_of(spec, options);
        if let TargetKind::Spdk { id, nsid } = &spec.kind {
            // SPDK says where the memory comes from.
            let config = heap_config_of(spec, options);
            let (engine, heap) = super::spdk::open(id, *nsid, config, wait_of(spec, options))?;
            return Self::on_engine(spec, options, heap, engine, None);
        }
        let heap = heap_of(spec, options);
        if let TargetKind::Uring(path) = &spec.kind {
            let disk = super::uring::open(spec, path.as_ref(), access, &heap)?;
            return Self::on_engine(spec, options, heap, Engine::Uring(disk), None);
        }
        let (controller, words) = controller_of(spec, options, access, &heap)?;
        let nsid = namespace_of(spec, &controller.info())?;
        let engine = Engine::Nvme { controller, nsid };
        Self::on_engine(spec, options, heap, engine, Some(words))
    }

    /// The target on an engine that is there. `words` say what that is, where it does not know itself.
    pub(super) fn on_engine(
        spec: &TargetSpec,
        options: &VolumeOptions,
        heap: Heap,
        engine: Engine,
        words: Option<String>,
    ) -> Result<Self> {
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
            memory: memory_of(&heap).to_owned(),
            ..info
        };
        Ok(Self {
            shared: Arc::new(TargetShared {
                engine,
                heap,
                name: spec.text.clone(),
                info,
                queue_depth: queue_depth as usize,
                command_timeout: options.command_timeout,
                wait: wait_of(spec, options),
                no_recovery: options.no_recovery || spec.no_recovery,
            }),
        })
    }

    /// What the controller reported since the last call, oldest first: health warnings, namespaces that
    /// changed. Cheap where there is nothing; to be asked now and then by one thread.
    pub fn events(&self) -> Vec<Event> {
        match &self.shared.engine {
            Engine::Nvme { controller, .. } => controller.events(),
            // The kernel keeps what the device reports to itself.
            Engine::Uring(_) => Vec::new(),
            // So does SPDK, which acts on it.
            #[cfg(feature = "spdk")]
            Engine::Spdk(_) => Vec::new(),
        }
    }

    /// What stands behind it.
    pub fn info(&self) -> &TargetInfo {
        &self.shared.info
    }
}

/// How its threads wait.
fn wait_of(spec: &TargetSpec, options: &VolumeOptions) -> Wait {
    spec.wait.unwrap_or(options.wait)
}

/// How its file may be used.
pub(super) fn access_of(spec: &TargetSpec, options: &VolumeOptions) -> ImageAccess {
    let no_recovery = options.no_recovery || spec.no_recovery;
    let in_use = options.allow_in_use || spec.allow_in_use;
    ImageAccess {
        read_only: options.read_only || spec.read_only || no_recovery || in_use,
        in_use,
    }
}

/// Its memory.
pub(super) fn heap_of(spec: &TargetSpec, options: &VolumeOptions) -> Heap {
    Heap::new(heap_config_of(spec, options))
}

fn heap_config_of(spec: &TargetSpec, options: &VolumeOptions) -> HeapConfig {
    HeapConfig {
        huge_pages: options.huge_pages,
        limit_bytes: options.memory_limit_bytes,
        shareable: matches!(spec.kind, TargetKind::VfioUser { .. }),
        ..HeapConfig::default()
    }
}

/// What that is made of.
pub(super) fn memory_of(heap: &Heap) -> &'static str {
    match heap.backing() {
        Some(Backing::Huge) => "hugepages",
        Some(Backing::Locked) => "locked pages",
        Some(Backing::Pageable) | None => "pageable memory",
    }
}

/// The controller of a target, up and running, and in words what it is.
pub(super) fn controller_of(
    spec: &TargetSpec,
    options: &VolumeOptions,
    access: ImageAccess,
    heap: &Heap,
) -> Result<(Arc<Controller>, String)> {
    let (device, words) = device_of(spec, options, access)?;
    let controller_options = ControllerOptions {
        shadow_doorbells: spec.shadow_doorbells.unwrap_or(true),
        ..ControllerOptions::default()
    };
    let controller = Controller::open(device, heap, controller_options)?;
    Ok((controller, format!("xtent's own NVMe driver over {words}")))
}

/// The device of a target, and in words what it is.
fn device_of(
    spec: &TargetSpec,
    options: &VolumeOptions,
    access: ImageAccess,
) -> Result<(Arc<dyn Device>, String)> {
    if let TargetKind::Pci { address, .. } = &spec.kind {
        let device = VfioDevice::open(&address.to_string(), &VfioOptions::default())?;
        return Ok((device, format!("VFIO, on the PCI device {address}")));
    }
    if let TargetKind::VfioUser { socket, .. } = &spec.kind {
        let device = VfioUserDevice::open(socket, &VfioUserOptions::default())?;
        let words = format!("vfio-user, of the process that serves {}", socket.display());
        return Ok((device, words));
    }
    let (medium, words) = medium_of(spec, access)?;
    let device = EmuDevice::start(emu_config(spec, options, medium, access))?;
    Ok((device, format!("its embedded controller, {words}")))
}

/// The embedded controller that an `image:` or `ram:` target stands for, as it is to be served to other
/// processes ([`crate::device::vfio_user::Server`]): with a thread of its own, and doorbells that fill one page.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a target without an embedded controller; those of opening its medium.
pub fn controller_to_serve(spec: &TargetSpec) -> Result<EmuConfig> {
    if !matches!(spec.kind, TargetKind::Image(_) | TargetKind::Ram { .. }) {
        let detail =
            "only image: and ram: targets can be served: a controller of hardware serves itself";
        return Err(Error::new(ErrorKind::InvalidInput, detail).on_device(&*spec.text));
    }
    let access = ImageAccess {
        read_only: spec.read_only || spec.allow_in_use,
        in_use: spec.allow_in_use,
    };
    let options = VolumeOptions::default();
    medium_of(spec, access)
        .map(|(medium, _)| EmuConfig {
            max_io_queues: SERVED_QUEUES,
            interrupt_vectors: SERVED_QUEUES + 1,
            mode: Mode::Threaded,
            ..emu_config(spec, &options, medium, access)
        })
        .map_err(|error| error.during("open").on_device(&*spec.text))
}

/// With a cache line for each pair's doorbells, those of the admin queue and of so many fill a page.
const SERVED_QUEUES: u16 = 63;

/// The namespace that a target names, or the only one.
pub(super) fn namespace_of(spec: &TargetSpec, info: &ControllerInfo) -> Result<u32> {
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

/// The medium of an embedded controller, and in words what it is.
fn medium_of(spec: &TargetSpec, access: ImageAccess) -> Result<(Medium, &'static str)> {
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
            let file = image::open(path, access)?;
            let medium = Medium::file(file, access.read_only)?;
            Ok((medium, "which reads and writes a file"))
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
            Ok((medium, "which keeps its blocks in memory"))
        }
        // Have no medium of ours: nobody comes here with them.
        TargetKind::Pci { .. } | TargetKind::VfioUser { .. } | TargetKind::Uring(_) => {
            later("a disk as a medium")
        }
        TargetKind::Spdk { .. } => later("an SPDK controller as a medium"),
    }
}

/// Copies an image into memory, leaving out what is zero.
fn load_image(medium: &mut Medium, path: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt;
    const PIECE_BYTES: usize = 1 << 20;
    let access = ImageAccess {
        read_only: true,
        in_use: false,
    };
    let file = image::open(path, access)?;
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
    options: &VolumeOptions,
    medium: Medium,
    access: ImageAccess,
) -> EmuConfig {
    let defaults = EmuConfig::default();
    EmuConfig {
        name: spec.text.clone(),
        medium,
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
        mode: match (spec.controller, options.controller) {
            (Some(ControllerMode::Inline), _) => Mode::Inline,
            // Whoever sleeps does not do the controller's work.
            (None, ControllerMode::Inline) if wait_of(spec, options) == Wait::Poll => Mode::Inline,
            _ => Mode::Threaded,
        },
        ..defaults
    }
}
