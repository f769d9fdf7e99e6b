//! SPDK's environment: one in a process, started by the first controller, and never stopped.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use spdk_sys as ffi;

use crate::error::{Error, ErrorKind, Result};
use crate::sys::{hugetlbfs_mounts, remove_stale_huge_files, spawn_thread, unreserved_huge_pages};

/// Where SPDK's own memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePageUse {
    /// Hugepages if enough are free and not reserved by other processes; otherwise ordinary memory,
    /// with a warning.
    #[default]
    Auto,
    /// Hugepages.
    Always,
    /// Ordinary memory.
    Never,
}

/// How the environment is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentOptions {
    /// Where SPDK's own memory comes from.
    pub huge_pages: HugePageUse,
    /// The processors that SPDK is told of, as a mask (`0x2`) or list (`[1,2]`). No thread is bound
    /// to them.
    pub core_mask: Option<String>,
    /// The id under which SPDK's processes share memory and controllers; `None` for no sharing.
    pub shm_id: Option<u32>,
    /// Memory for SPDK at the start, in MiB; with hugepages it grows as needed. `None` is half of
    /// the free hugepages, 512 at most, and without hugepages 1 GiB of addresses.
    pub memory_mib: Option<u32>,
    /// PCI devices may be used. Off, SPDK does not look for any. A target with `trtype=PCIe` turns
    /// it on.
    pub pci: bool,
}

impl Default for EnvironmentOptions {
    fn default() -> Self {
        Self {
            huge_pages: HugePageUse::Auto,
            core_mask: None,
            shm_id: None,
            memory_mib: None,
            pci: false,
        }
    }
}

/// The variable with options for the environment of a process that does not start it itself.
const VARIABLE: &str = "XTENT_SPDK";

impl EnvironmentOptions {
    /// Parses the variable `XTENT_SPDK`: `huge=auto|on|off,cores=MASK,shm=ID,mem=MIB,pci=on|off`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] with the known keys and values.
    pub fn from_environment() -> Result<Self> {
        match std::env::var(VARIABLE) {
            Ok(text) => Self::parse(&text),
            Err(_) => Ok(Self::default()),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let mut options = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let number = || value.parse::<u32>().ok().filter(|&n| n <= 1 << 24);
            let fine = match (key, value) {
                ("huge", "auto") => true,
                ("huge", "on") => {
                    options.huge_pages = HugePageUse::Always;
                    true
                }
                ("huge", "off") => {
                    options.huge_pages = HugePageUse::Never;
                    true
                }
                ("cores", mask) if !mask.is_empty() => {
                    options.core_mask = Some(mask.to_owned());
                    true
                }
                ("shm", _) => {
                    options.shm_id = number();
                    options.shm_id.is_some()
                }
                ("mem", _) => {
                    options.memory_mib = number().filter(|&mib| mib >= 64);
                    options.memory_mib.is_some()
                }
                ("pci", "on" | "off") => {
                    options.pci = value == "on";
                    true
                }
                _ => false,
            };
            if !fine {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "`{word}` in {VARIABLE} is not understood: it has huge=auto|on|off, cores=MASK, shm=ID, \
                         mem=MIB (64 or more) and pci=on|off, between commas"
                    ),
                ));
            }
        }
        Ok(options)
    }
}

/// Free hugepages below which [`HugePageUse::Auto`] goes without.
const FEWEST_HUGE_PAGES: u64 = 64;

/// Memory at the start, with hugepages, in MiB. In one piece: a controller on a socket can be lent
/// 16 of them at most, and each time that SPDK's memory grows makes one.
const FIRST_HUGE_MIB: u64 = 512;

/// The environment of this process.
#[derive(Debug)]
pub struct SpdkEnvironment {
    /// How it was started; `huge_pages` is decided.
    options: EnvironmentOptions,
}

static STARTED: OnceLock<SpdkEnvironment> = OnceLock::new();
static STARTING: Mutex<Option<String>> = Mutex::new(None);

impl SpdkEnvironment {
    /// Starts it; later calls find it started, with the options of the first.
    ///
    /// # Errors
    /// What SPDK and DPDK say. A start that failed cannot be repeated in the same process.
    pub fn start(options: &EnvironmentOptions) -> Result<&'static Self> {
        let mut failed = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(started) = STARTED.get() {
            return Ok(started);
        }
        if let Some(why) = &*failed {
            return Err(Error::new(ErrorKind::System, why.clone()));
        }
        // What SPDK's programs left behind, also older versions of this one.
        remove_stale_huge_files("spdk_pid");
        let mut options = options.clone();
        decide(&mut options, unreserved_huge_pages(), has_hugetlbfs());
        let wanted = options.clone();
        // DPDK binds the thread that starts it to a processor: one that ends right after.
        let result = spawn_thread("spdk-start", move || start(&wanted))?
            .join()
            .unwrap_or_else(|_| Err("the starting thread panicked".to_owned()));
        if let Err(why) = result {
            *failed = Some(why.clone());
            return Err(Error::new(ErrorKind::System, why));
        }
        Ok(STARTED.get_or_init(|| Self { options }))
    }

    /// How it was started.
    pub fn options(&self) -> &EnvironmentOptions {
        &self.options
    }

    /// Whether SPDK's memory is hugepages.
    pub(super) fn huge(&self) -> bool {
        self.options.huge_pages == HugePageUse::Always
    }
}

/// Whether files of hugepages can be made.
fn has_hugetlbfs() -> bool {
    hugetlbfs_mounts().iter().any(|dir| is_writable(dir))
}

fn is_writable(dir: &Path) -> bool {
    let Ok(dir) = CString::new(dir.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: a C string that outlives the call.
    unsafe { libc::access(dir.as_ptr(), libc::W_OK | libc::X_OK) == 0 }
}

/// Chooses the automatic options, hugepages and their amount, from `pages`: the free, unreserved
/// ones.
fn decide(options: &mut EnvironmentOptions, pages: u64, has_hugetlbfs: bool) {
    if options.huge_pages == HugePageUse::Auto {
        let wanted = u64::from(options.memory_mib.unwrap_or(0)).div_ceil(2);
        let wanted = wanted.max(FEWEST_HUGE_PAGES);
        options.huge_pages = if pages < wanted {
            tracing::warn!(
                "SPDK uses ordinary memory: it needs {wanted} free hugepages of 2 MiB, and {pages} are free and not \
                 reserved by other processes. To reserve some: echo {} > /proc/sys/vm/nr_hugepages",
                wanted * 2
            );
            HugePageUse::Never
        } else if options.shm_id.is_some() && !has_hugetlbfs {
            tracing::warn!(
                "SPDK uses ordinary memory: processes that share memory (shm=) need a hugetlbfs that they may write \
                 to. To mount one: mount -t hugetlbfs none /dev/hugepages"
            );
            HugePageUse::Never
        } else {
            HugePageUse::Always
        };
    }
    if options.memory_mib.is_none() && options.huge_pages == HugePageUse::Always {
        // Of 2 MiB each, and half of them.
        let mib = pages.clamp(64, FIRST_HUGE_MIB);
        options.memory_mib = u32::try_from(mib).ok();
    }
}

/// The arguments of DPDK that SPDK has no option for.
fn dpdk_arguments(options: &EnvironmentOptions) -> Option<CString> {
    let mut arguments = Vec::new();
    if !noisy() {
        // Errors alone: the rest is for those who ask for it.
        arguments.push("--log-level=*:4");
    }
    if options.huge_pages == HugePageUse::Always && options.shm_id.is_none() {
        // Hugepages without files: they need no mounted hugetlbfs, and are gone with the process,
        // however it ends.
        arguments.push("--in-memory");
    }
    match arguments.is_empty() {
        true => None,
        false => CString::new(arguments.join(" ")).ok(),
    }
}

fn start(options: &EnvironmentOptions) -> Result<(), String> {
    let huge = options.huge_pages == HugePageUse::Always;
    let text = |text: &str| CString::new(text).map_err(|_| "an option holds a NUL".to_owned());
    let mask = options.core_mask.as_deref().map(text).transpose()?;
    let arguments = dpdk_arguments(options);
    let memory = options
        .memory_mib
        .map_or(1024, |mib| i32::try_from(mib).unwrap_or(i32::MAX));
    let start = ffi::xtent_spdk_env {
        name: c"xtent".as_ptr(),
        core_mask: mask.as_ref().map_or(std::ptr::null(), |mask| mask.as_ptr()),
        dpdk_args: arguments
            .as_ref()
            .map_or(std::ptr::null(), |arguments| arguments.as_ptr()),
        shm_id: options
            .shm_id
            .map_or(-1, |id| i32::try_from(id).unwrap_or(0)),
        memory_mib: memory,
        hugepages: huge,
        pci: options.pci,
    };
    // SAFETY: the callback is a function of this file that lives as long as the process.
    unsafe { ffi::xtent_spdk_log_to(Some(on_log)) };
    forget_words();
    // SAFETY: all strings live until the call returns, and SPDK copies them; called once in the
    // process, under the lock of `STARTING`.
    match unsafe { ffi::xtent_spdk_env_start(&raw const start) } {
        0 => Ok(()),
        rc => Err(format!(
            "SPDK's environment does not start ({}){}; {}",
            std::io::Error::from_raw_os_error(-rc),
            words(),
            if huge {
                "it was to use hugepages: XTENT_SPDK=huge=off goes without"
            } else {
                "it was to use ordinary memory: XTENT_SPDK=huge=on uses hugepages"
            }
        )),
    }
}

/// Set, DPDK logs all that it can (to stderr, by itself), not errors alone.
fn noisy() -> bool {
    static NOISY: OnceLock<bool> = OnceLock::new();
    *NOISY.get_or_init(|| std::env::var_os("XTENT_SPDK_LOG").is_some_and(|value| value != "0"))
}

thread_local! {
    /// The first complaints of SPDK on this thread since they were last asked for: the first is the
    /// cause.
    static WORDS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

const MOST_WORDS: usize = 2;

/// A message without the names of host, controller and queue in brackets that SPDK begins with.
fn without_names(mut text: &str) -> &str {
    while let Some((_, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        text = rest.trim_start();
    }
    text
}

/// SPDK's levels: 0 is an error, 1 a warning.
extern "C" fn on_log(level: c_int, text: *const c_char) {
    if text.is_null() {
        return;
    }
    // SAFETY: the shim hands over a string that ends, in its own frame.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    // Errors too: they are part of the error that the caller gets.
    tracing::debug!(target: "xtent::spdk", level, "spdk: {}", text.trim_end());
    if level <= 0 {
        // A thread that ends has no words any more.
        let _ = WORDS.try_with(|words| {
            if let Ok(mut words) = words.try_borrow_mut()
                && words.len() < MOST_WORDS
            {
                words.push(without_names(&text).to_owned());
            }
        });
    }
}

/// Forgets what SPDK said on this thread.
pub(super) fn forget_words() {
    WORDS.with_borrow_mut(Vec::clear);
}

/// Whether SPDK complained on this thread since.
pub(super) fn has_complained() -> bool {
    WORDS.with_borrow(|words| !words.is_empty())
}

/// What SPDK said on this thread since, to be added to an error.
pub(super) fn words() -> String {
    let words = WORDS.with_borrow_mut(std::mem::take);
    match words.is_empty() {
        true => String::new(),
        false => format!("; SPDK says: {}", words.join("; ")),
    }
}

/// SPDK's lists of controllers are changed by one thread at a time, and so is what it says on the
/// socket of a controller that another process serves: registers, and memory that comes and goes.
pub(super) fn attaching() -> MutexGuard<'static, ()> {
    static ATTACHING: Mutex<()> = Mutex::new(());
    ATTACHING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_lose_their_names() {
        assert_eq!(
            without_names("[a,b] [c] connect() failed [x]"),
            "connect() failed [x]"
        );
        assert_eq!(without_names("[open"), "[open");
    }

    #[test]
    fn hugepages_are_taken_where_they_are_to_be_had() {
        let with = |pages, hugetlbfs, change: fn(&mut EnvironmentOptions)| {
            let mut options = EnvironmentOptions::default();
            change(&mut options);
            decide(&mut options, pages, hugetlbfs);
            (options.huge_pages, options.memory_mib)
        };
        let huge = HugePageUse::Always;
        assert_eq!(with(63, true, |_| {}), (HugePageUse::Never, None));
        assert_eq!(with(64, false, |_| {}), (huge, Some(64)));
        assert_eq!(with(200, false, |_| {}), (huge, Some(200)));
        assert_eq!(with(9999, true, |_| {}), (huge, Some(512)));
        // Asked for more than there is.
        let (use_, _) = with(200, true, |options| options.memory_mib = Some(402));
        assert_eq!(use_, HugePageUse::Never);
        let (use_, _) = with(200, true, |options| options.memory_mib = Some(400));
        assert_eq!(use_, huge);
        // Shared memory is in files.
        let shared: fn(&mut EnvironmentOptions) = |options| options.shm_id = Some(1);
        assert_eq!(with(200, false, shared).0, HugePageUse::Never);
        assert_eq!(with(200, true, shared).0, huge);
    }

    #[test]
    fn options_are_read() {
        let options = EnvironmentOptions::parse("huge=off,cores=0x3,shm=7,mem=256,pci=on").unwrap();
        assert_eq!(options.huge_pages, HugePageUse::Never);
        assert_eq!(options.core_mask.as_deref(), Some("0x3"));
        assert_eq!((options.shm_id, options.memory_mib), (Some(7), Some(256)));
        assert!(options.pci);
        for bad in [
            "huge",
            "huge=maybe",
            "mem=1",
            "shm=x",
            "cores=",
            "colour=red",
        ] {
            assert!(EnvironmentOptions::parse(bad).is_err(), "{bad}");
        }
    }
}
