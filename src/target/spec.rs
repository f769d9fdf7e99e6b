//! Targets as they are named on the command line: a scheme, what it opens, and options after
//! commas.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::ControllerMode;
use crate::block::Wait;
use crate::device::vfio::PciAddress;
use crate::error::{Error, ErrorKind, Result};
use crate::spdk::TransportId;

/// What a target opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetKind {
    /// `image:FILE`: a file behind the embedded controller.
    Image(PathBuf),
    /// `ram:SIZE`: memory behind the embedded controller; with `load=FILE` it starts as a copy of
    /// the file.
    Ram {
        /// Bytes of memory.
        capacity_bytes: u64,
        /// The file to start from.
        load: Option<PathBuf>,
    },
    /// `pci:ADDRESS[/NSID]`: a disk over VFIO.
    Pci {
        /// Where the controller is.
        address: PciAddress,
        /// The namespace; `None` for the only one there is.
        nsid: Option<u32>,
    },
    /// `vfio-user:SOCKET`, with `nsid=N`: a controller that another process serves (SPDK's
    /// nvmf_tgt, or `xtent serve vfio-user`).
    VfioUser {
        /// The socket, or the directory with the socket `cntrl` in it.
        socket: PathBuf,
        /// The namespace; `None` for the only one there is.
        nsid: Option<u32>,
    },
    /// `spdk:trtype=... traddr=...`, with `nsid=N`: a controller that SPDK drives, of this machine
    /// or another.
    Spdk {
        /// Where the controller is.
        id: TransportId,
        /// The namespace; `None` for the only one there is.
        nsid: Option<u32>,
    },
    /// `uring:PATH`: a block device or a file over the kernel's block layer.
    Uring(String),
}

/// A target: what it opens and the options that came with it.
///
/// ```
/// use xtent::internals::target::{TargetKind, TargetSpec};
/// let spec = TargetSpec::parse("image:disk.img,lba=4096,mdts=7,readonly")?;
/// assert_eq!(spec.kind, TargetKind::Image("disk.img".into()));
/// assert_eq!(spec.lba_bytes, Some(4096));
/// assert!(spec.read_only);
/// # Ok::<(), xtent::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetSpec {
    /// The text it was parsed from.
    pub text: String,
    /// What it opens.
    pub kind: TargetKind,
    /// `lba=512|4096`: bytes in a logical block of the embedded controller.
    pub lba_bytes: Option<u32>,
    /// `mdts=N`: largest command as a power of two of 4 KiB pages; 0 for no limit.
    pub mdts: Option<u8>,
    /// `noiob=N`: blocks between boundaries that commands do not cross.
    pub noiob_blocks: Option<u32>,
    /// `depth=N`: operations in flight per queue pair.
    pub queue_depth: Option<u32>,
    /// `vwc=on|off`: whether the embedded controller has a volatile write cache.
    pub volatile_write_cache: Option<bool>,
    /// `wait=poll|interrupt|adaptive`: how threads wait for the device.
    pub wait: Option<Wait>,
    /// `dbbuf=on|off`: whether shadow doorbells are used, and offered by the embedded controller.
    /// By default they are used where a controller offers them, which the embedded one does not.
    pub shadow_doorbells: Option<bool>,
    /// `threaded`, `inline`: how the embedded controller runs.
    pub controller: Option<ControllerMode>,
    /// `readonly`: nothing is ever written.
    pub read_only: bool,
    /// `norecovery`: read although the log holds changes.
    pub no_recovery: bool,
    /// `noreplay`: refuse a log that holds changes.
    pub no_replay: bool,
    /// `discard=on|off`: blocks that the filesystem frees are discarded, or not.
    pub discard: Option<bool>,
    /// `part=N`, `part=NAME`: only this partition of the device.
    pub partition: Option<String>,
    /// `offset=BYTES`: only what lies from this byte of the device on.
    pub offset_bytes: Option<u64>,
    /// `inuse`: read although the image is in use elsewhere.
    pub allow_in_use: bool,
}

const SCHEMES: &str = "image:FILE, ram:SIZE, pci:ADDRESS[/NSID], vfio-user:SOCKET, spdk:TRANSPORT or \
                       uring:PATH";
const OPTIONS: &str = "lba=512|4096, mdts=0..16, noiob=BLOCKS, depth=2..4096, vwc=on|off, \
                       wait=poll|interrupt|adaptive, dbbuf=on|off, threaded, inline, part=N|NAME, offset=BYTES, readonly, \
                       norecovery, noreplay, discard=on|off, inuse, \
                       for ram: load=FILE, and for vfio-user: and spdk: nsid=N";

impl TargetSpec {
    /// Parses a target. A bare path of an existing ordinary file is taken as `image:`. A comma in a
    /// file name is written twice.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] with the known forms, [`ErrorKind::NotFound`] for a bare word
    /// that is no file.
    pub fn parse(text: &str) -> Result<Self> {
        parse(text).map_err(|error| error.during("parse target").on_device(text))
    }
}

impl FromStr for TargetSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for TargetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, detail)
}

/// Cuts at single commas; a doubled comma stands for itself.
fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.peek() != Some(&',') {
            parts.push(String::new());
            continue;
        }
        if c == ',' {
            chars.next();
        }
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

fn parse(text: &str) -> Result<TargetSpec> {
    let mut spec = TargetSpec {
        text: text.to_owned(),
        kind: TargetKind::Image(PathBuf::new()),
        lba_bytes: None,
        mdts: None,
        noiob_blocks: None,
        queue_depth: None,
        volatile_write_cache: None,
        wait: None,
        shadow_doorbells: None,
        controller: None,
        read_only: false,
        no_recovery: false,
        no_replay: false,
        discard: None,
        allow_in_use: false,
        partition: None,
        offset_bytes: None,
    };
    if text.is_empty() {
        return Err(invalid(format!("the target is empty: give {SCHEMES}")));
    }
    // A file whose name looks like anything at all is still a file, when it is there as it stands.
    if !text.contains(':') && Path::new(text).exists() {
        spec.kind = TargetKind::Image(PathBuf::from(text));
        return Ok(spec);
    }
    let mut parts = split_commas(text).into_iter();
    let head = parts.next().unwrap_or_default();
    let known = ["image", "ram", "pci", "vfio-user", "spdk", "uring"];
    spec.kind = match head.split_once(':') {
        Some((scheme, rest)) if known.contains(&scheme) => kind_of(scheme, rest)?,
        // No scheme, or a file with a colon in its name.
        _ if Path::new(&head).exists() => TargetKind::Image(PathBuf::from(&head)),
        Some((scheme, _)) => {
            return Err(invalid(format!(
                "`{scheme}:` is not a kind of target: give {SCHEMES}"
            )));
        }
        // A file that is there, or may be, and cannot be reached.
        None if is_out_of_reach(&head) => {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                format!("permission denied on the way to the file `{head}`"),
            ));
        }
        None => {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("{head}: no such file. Other target forms: {SCHEMES}"),
            ));
        }
    };
    for option in parts {
        apply_option(&mut spec, &option)?;
    }
    check_options(&spec)?;
    Ok(spec)
}

/// Whether permissions, not its absence, keep the file from being seen.
fn is_out_of_reach(path: &str) -> bool {
    let seen = Path::new(path).try_exists();
    seen.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// Rejects options that exclude each other, and those of the embedded controller for a device.
fn check_options(spec: &TargetSpec) -> Result<()> {
    if spec.partition.is_some() && spec.offset_bytes.is_some() {
        return Err(invalid(
            "the options `part` and `offset` both say where the filesystem begins: give one of them",
        ));
    }
    let sleeps = spec.wait.is_some_and(|wait| wait != Wait::Poll);
    if sleeps && spec.controller == Some(ControllerMode::Inline) {
        return Err(invalid(
            "an `inline` controller works on the thread that waits, which cannot sleep then: leave out `inline` \
             or `wait`",
        ));
    }
    let given = [
        ("lba", spec.lba_bytes.is_some()),
        ("mdts", spec.mdts.is_some()),
        ("noiob", spec.noiob_blocks.is_some()),
        ("vwc", spec.volatile_write_cache.is_some()),
        ("threaded` or `inline", spec.controller.is_some()),
    ];
    let takes_lba = matches!(spec.kind, TargetKind::Uring(_));
    let shaped = |name: &str| name != "lba" || !takes_lba;
    match given.iter().find(|(name, given)| *given && shaped(name)) {
        Some((name, _)) if is_disk(&spec.kind) => Err(invalid(format!(
            "the option `{name}` is for the embedded controller, and this is a disk"
        ))),
        _ => Ok(()),
    }
}

fn is_disk(kind: &TargetKind) -> bool {
    matches!(
        kind,
        TargetKind::Pci { .. } | TargetKind::VfioUser { .. } | TargetKind::Uring(_)
    )
}

/// A namespace's number.
fn parse_nsid(text: &str) -> Result<u32> {
    let number = text.parse().ok().filter(|n| (1..u32::MAX).contains(n));
    number.ok_or_else(|| invalid(format!("`{text}` is not a namespace: they count from 1")))
}

/// `ADDRESS` or `ADDRESS/NSID`.
fn parse_pci(text: &str) -> Result<TargetKind> {
    let (address, nsid) = match text.split_once('/') {
        None => (text, None),
        Some((address, nsid)) => (address, Some(parse_nsid(nsid)?)),
    };
    Ok(TargetKind::Pci {
        address: address.parse()?,
        nsid,
    })
}

fn kind_of(scheme: &str, rest: &str) -> Result<TargetKind> {
    if rest.is_empty() {
        return Err(invalid(format!(
            "`{scheme}:` needs something after the colon: give {SCHEMES}"
        )));
    }
    Ok(match scheme {
        "image" => TargetKind::Image(PathBuf::from(rest)),
        "ram" => TargetKind::Ram {
            capacity_bytes: parse_size(rest)?,
            load: None,
        },
        "pci" => parse_pci(rest)?,
        "vfio-user" => TargetKind::VfioUser {
            socket: PathBuf::from(rest),
            nsid: None,
        },
        "spdk" => TargetKind::Spdk {
            id: rest.parse()?,
            nsid: None,
        },
        _ => TargetKind::Uring(rest.to_owned()),
    })
}

/// Applies an option that is a word alone; false for one that is none.
fn apply_word(spec: &mut TargetSpec, name: &str) -> bool {
    match name {
        "readonly" | "ro" => spec.read_only = true,
        "norecovery" => spec.no_recovery = true,
        "noreplay" => spec.no_replay = true,
        "inuse" => spec.allow_in_use = true,
        "threaded" => spec.controller = Some(ControllerMode::Threaded),
        "inline" => spec.controller = Some(ControllerMode::Inline),
        _ => return false,
    }
    true
}

fn apply_option(spec: &mut TargetSpec, option: &str) -> Result<()> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None if apply_word(spec, option) => return Ok(()),
        None => (option, None),
    };
    match (name, value) {
        (
            "readonly" | "ro" | "norecovery" | "noreplay" | "inuse" | "threaded" | "inline",
            Some(_),
        ) => {
            return Err(invalid(format!("the option `{name}` takes no value")));
        }
        ("lba", Some("512")) => spec.lba_bytes = Some(512),
        ("lba", Some("4096" | "4k" | "4K")) => spec.lba_bytes = Some(4096),
        ("mdts", Some(value)) => {
            let pages_log2 = number(name, value, 0, 16)?;
            spec.mdts = Some(u8::try_from(pages_log2).unwrap_or(0));
        }
        ("noiob", Some(value)) => spec.noiob_blocks = Some(number(name, value, 0, 65_535)?),
        ("depth", Some(value)) => spec.queue_depth = Some(number(name, value, 2, 4096)?),
        ("vwc", Some("on")) => spec.volatile_write_cache = Some(true),
        ("vwc", Some("off")) => spec.volatile_write_cache = Some(false),
        ("discard", Some("on")) => spec.discard = Some(true),
        ("discard", Some("off")) => spec.discard = Some(false),
        ("dbbuf", Some("on")) => spec.shadow_doorbells = Some(true),
        ("dbbuf", Some("off")) => spec.shadow_doorbells = Some(false),
        ("wait", Some("poll")) => spec.wait = Some(Wait::Poll),
        ("wait", Some("interrupt")) => spec.wait = Some(Wait::Interrupt),
        ("wait", Some("adaptive")) => spec.wait = Some(Wait::ADAPTIVE),
        ("load", Some(file)) => match &mut spec.kind {
            TargetKind::Ram { load, .. } => *load = Some(PathBuf::from(file)),
            _ => return Err(invalid("the option `load` is for ram: targets only")),
        },
        ("part", Some(value)) if !value.is_empty() => spec.partition = Some(value.to_owned()),
        ("part", Some(_)) => {
            return Err(invalid("the option `part` needs a number or a name"));
        }
        ("offset", Some("0")) => spec.offset_bytes = Some(0),
        ("offset", Some(value)) => spec.offset_bytes = Some(parse_size(value)?),
        ("nsid", Some(value)) => match &mut spec.kind {
            TargetKind::VfioUser { nsid, .. } | TargetKind::Spdk { nsid, .. } => {
                *nsid = Some(parse_nsid(value)?);
            }
            _ => {
                return Err(invalid(
                    "the option `nsid` is for vfio-user: and spdk: targets only",
                ));
            }
        },
        ("lba" | "vwc" | "wait" | "dbbuf", Some(value)) => {
            return Err(invalid(format!(
                "`{value}` is not a value of `{name}`: the options are {OPTIONS}"
            )));
        }
        (
            "lba" | "mdts" | "noiob" | "depth" | "vwc" | "wait" | "dbbuf" | "load" | "nsid"
            | "part" | "offset",
            None,
        ) => {
            return Err(invalid(format!(
                "the option `{name}` needs a value: the options are {OPTIONS}"
            )));
        }
        _ => {
            return Err(invalid(format!(
                "`{name}` is not an option of a target: the options are {OPTIONS}"
            )));
        }
    }
    Ok(())
}

fn number(name: &str, value: &str, least: u32, most: u32) -> Result<u32> {
    value
        .parse()
        .ok()
        .filter(|n| (least..=most).contains(n))
        .ok_or_else(|| {
            invalid(format!(
                "`{value}` is not a value of `{name}`: give a number from {least} to {most}"
            ))
        })
}

/// A size in bytes with a binary suffix: `4096`, `512K`, `1G`.
fn parse_size(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => Some(0),
        "k" | "kib" => Some(10),
        "m" | "mib" => Some(20),
        "g" | "gib" => Some(30),
        "t" | "tib" => Some(40),
        _ => None,
    };
    shift
        .and_then(|shift| digits.parse::<u64>().ok()?.checked_mul(1 << shift))
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| {
            invalid(format!(
                "`{text}` is not a size: give bytes, or a number with K, M, G or T"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_by_address_and_namespace() {
        let kind = |text: &str| TargetSpec::parse(text).map(|spec| spec.kind);
        let address = "0000:01:00.0".parse().unwrap();
        let pci = |nsid| TargetKind::Pci { address, nsid };
        assert_eq!(kind("pci:0000:01:00.0").unwrap(), pci(None));
        assert_eq!(kind("pci:01:00.0/3,readonly").unwrap(), pci(Some(3)));
        for text in [
            "pci:01:00.0/0",
            "pci:01:00.0/",
            "pci:01:00.0/x",
            "pci:nvme0",
            "pci:01:00.0,lba=4096",
            "pci:01:00.0,threaded",
        ] {
            assert_eq!(
                kind(text).unwrap_err().kind(),
                ErrorKind::InvalidInput,
                "{text}"
            );
        }
    }

    #[test]
    fn controllers_of_other_processes_are_named_by_socket() {
        let kind = |text: &str| TargetSpec::parse(text).map(|spec| spec.kind);
        let vfio_user = |nsid| TargetKind::VfioUser {
            socket: "/run/x/cntrl".into(),
            nsid,
        };
        assert_eq!(kind("vfio-user:/run/x/cntrl").unwrap(), vfio_user(None));
        let named = kind("vfio-user:/run/x/cntrl,nsid=2,readonly").unwrap();
        assert_eq!(named, vfio_user(Some(2)));
        for text in [
            "vfio-user:",
            "vfio-user:/run/x,nsid=0",
            "vfio-user:/run/x,nsid",
            "vfio-user:/run/x,mdts=3",
            "ram:1M,nsid=1",
        ] {
            let error = kind(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
        }
    }

    #[test]
    fn options_are_taken() {
        let spec = TargetSpec::parse(
            "image:a,,b.img,lba=4096,mdts=5,noiob=256,depth=64,vwc=off,wait=poll,dbbuf=on,inline,readonly,norecovery,inuse",
        )
        .unwrap();
        assert_eq!(spec.kind, TargetKind::Image("a,b.img".into()));
        assert_eq!(spec.lba_bytes, Some(4096));
        assert_eq!(spec.mdts, Some(5));
        assert_eq!(spec.noiob_blocks, Some(256));
        assert_eq!(spec.queue_depth, Some(64));
        assert_eq!(spec.volatile_write_cache, Some(false));
        assert_eq!(spec.wait, Some(Wait::Poll));
        assert_eq!(spec.shadow_doorbells, Some(true));
        assert_eq!(spec.controller, Some(ControllerMode::Inline));
        assert!(spec.read_only && spec.no_recovery && spec.allow_in_use);
        let spec = TargetSpec::parse("ram:1M,wait=adaptive").unwrap();
        assert_eq!(spec.wait, Some(Wait::ADAPTIVE));
        let spec = TargetSpec::parse("pci:01:00.0,wait=interrupt").unwrap();
        assert_eq!(spec.wait, Some(Wait::Interrupt));
    }

    #[test]
    fn ram_has_a_size_and_may_start_from_a_file() {
        let spec = TargetSpec::parse("ram:2G,load=x.img").unwrap();
        assert_eq!(
            spec.kind,
            TargetKind::Ram {
                capacity_bytes: 2 << 30,
                load: Some("x.img".into())
            }
        );
        for bad in ["ram:", "ram:0", "ram:1X", "ram:99999999999999T", "ram:G"] {
            let error = TargetSpec::parse(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}: {error}");
        }
    }

    #[test]
    fn a_typo_is_answered_with_what_is_known() {
        for (bad, words) in [
            ("image:x,lbs=512", "lba=512|4096"),
            ("image:x,lba=1024", "lba=512|4096"),
            ("image:x,wait=now", "wait=poll|interrupt|adaptive"),
            ("ram:1M,inline,wait=interrupt", "cannot sleep"),
            ("image:x,mdts=99", "from 0 to 16"),
            ("image:x,depth", "needs a value"),
            ("image:x,readonly=1", "takes no value"),
            ("image:x,load=y", "ram: targets only"),
            ("imag:x", "image:FILE"),
            ("", "image:FILE"),
        ] {
            let error = TargetSpec::parse(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(words), "{bad}: {error}");
        }
        let error = TargetSpec::parse("no-such-file.img").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_bare_file_is_an_image() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let spec = TargetSpec::parse(path).unwrap();
        assert_eq!(spec.kind, TargetKind::Image(path.into()));
        let spec = TargetSpec::parse(&format!("{path},readonly")).unwrap();
        assert!(spec.read_only);
    }
}
