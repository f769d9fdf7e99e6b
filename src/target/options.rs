//! How a target is opened.

use std::time::Duration;

use crate::block::Wait;
use crate::mem::HugePages;

/// How the embedded controller runs.
///
/// ```
/// use xtent::target::{ControllerMode, TargetOptions};
/// let options = TargetOptions::new().controller(ControllerMode::Threaded);
/// # drop(options);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ControllerMode {
    /// On a thread of its own, as a device does. It needs a CPU of its own: on the CPU of a thread
    /// that polls, each of the two waits for the scheduler.
    Threaded,
    /// On the caller's thread, while the caller waits.
    #[default]
    Inline,
}

/// Options of a target. Options in the target's own text (`image:disk.img,depth=8`) take
/// precedence.
///
/// ```
/// use xtent::target::{Target, TargetOptions};
/// # fn main() -> xtent::Result<()> {
/// let options = TargetOptions::new().read_only(true).queue_depth(32);
/// let target = Target::open("ram:64M", &options)?;
/// assert!(target.info().read_only);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct TargetOptions {
    pub(crate) read_only: bool,
    pub(crate) allow_in_use: bool,
    pub(crate) queue_depth: u32,
    pub(crate) controller: ControllerMode,
    pub(crate) huge_pages: HugePages,
    pub(crate) memory_limit_bytes: usize,
    pub(crate) command_timeout: Duration,
    pub(crate) wait: Wait,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            allow_in_use: false,
            queue_depth: 128,
            controller: ControllerMode::default(),
            huge_pages: HugePages::default(),
            memory_limit_bytes: usize::MAX,
            command_timeout: Duration::from_secs(30),
            wait: Wait::Poll,
        }
    }
}

impl TargetOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Open for reading only. Default: false.
    #[must_use]
    pub fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// Open, for reading only, an image that is in use elsewhere (a loop device, another process).
    /// The data read may then change at any time or be inconsistent. Default: false.
    #[must_use]
    pub fn allow_in_use(mut self, yes: bool) -> Self {
        self.allow_in_use = yes;
        self
    }

    /// Operations in flight for each queue, 1 to 4095. Default: 128.
    #[must_use]
    pub fn queue_depth(mut self, depth: u32) -> Self {
        self.queue_depth = depth;
        self
    }

    /// How an embedded controller runs. Default: on the caller's thread.
    #[must_use]
    pub fn controller(mut self, mode: ControllerMode) -> Self {
        self.controller = mode;
        self
    }

    /// Whether DMA memory comes from hugepages. Default: where there are free ones.
    #[must_use]
    pub fn huge_pages(mut self, huge_pages: HugePages) -> Self {
        self.huge_pages = huge_pages;
        self
    }

    /// The most DMA memory that the target takes, in bytes. Default: no limit.
    #[must_use]
    pub fn memory_limit_bytes(mut self, bytes: usize) -> Self {
        self.memory_limit_bytes = bytes;
        self
    }

    /// Time after which a command counts as lost and the controller is reset. Default: 30 s.
    #[must_use]
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.command_timeout = timeout;
        self
    }

    /// How threads wait for the device. Where they do not poll, an embedded controller runs on a
    /// thread of its own unless the target's text says otherwise. Default: [`Wait::Poll`].
    #[must_use]
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }
}
