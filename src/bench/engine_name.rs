//! The engines that are compared, and one target in the notation of each.

use std::path::Path;

use clap::ValueEnum;
use xtent::internals::spdk::{Transport, TransportId};
use xtent::internals::target::{TargetKind, TargetSpec};

/// An engine that can drive a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineName {
    /// xtent's own NVMe driver
    Native,
    /// SPDK's NVMe driver
    Spdk,
    /// The kernel's block layer, by io_uring
    Uring,
}

impl EngineName {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Spdk => "spdk",
            Self::Uring => "uring",
        }
    }

    /// The target in this engine's notation, with the options that hold for any engine; or why it
    /// cannot drive it.
    pub(super) fn target(self, spec: &TargetSpec) -> Result<String, &'static str> {
        let same = match spec.kind {
            TargetKind::Uring(_) => Self::Uring,
            TargetKind::Spdk { .. } => Self::Spdk,
            _ => Self::Native,
        };
        if self == same {
            return Ok(spec.text.clone());
        }
        let other = self.other_name(spec)?;
        Ok(format!("{other}{}", carried_options(spec)))
    }

    /// What another engine's target opens, in this engine's notation.
    fn other_name(self, spec: &TargetSpec) -> Result<String, &'static str> {
        match (self, &spec.kind) {
            (Self::Native, TargetKind::Spdk { id, nsid }) => own_way(id, *nsid),
            (Self::Native, TargetKind::Uring(path)) if Path::new(path).is_file() => {
                Ok(format!("image:{}", escaped(path)))
            }
            (Self::Native, TargetKind::Uring(_)) => Err(
                "the disk is with the kernel's driver: bind it (vfio-setup.sh) and name it by pci:",
            ),
            (Self::Native, _) => Err("it is xtent's own driver's already"),
            (Self::Uring, TargetKind::Image(path)) => path
                .to_str()
                .map(|path| format!("uring:{}", escaped(path)))
                .ok_or("its name is not UTF-8"),
            (Self::Uring, TargetKind::Pci { .. }) => Err(
                "the kernel has no device of a disk that is with VFIO (compare --device hands one to and fro)",
            ),
            (Self::Uring, _) => Err("the kernel does not reach it"),
            (Self::Spdk, TargetKind::Pci { address, nsid }) => Ok(with_nsid(
                format!("spdk:trtype=PCIe traddr={address}"),
                *nsid,
            )),
            (Self::Spdk, TargetKind::VfioUser { socket, nsid }) => {
                // SPDK names the directory.
                let dir = if socket.ends_with("cntrl") {
                    socket.parent().unwrap_or(socket)
                } else {
                    socket
                };
                dir.to_str()
                    .filter(|dir| !dir.contains(char::is_whitespace))
                    .map(|dir| format!("spdk:trtype=VFIOUSER traddr={}", escaped(dir)))
                    .map(|target| with_nsid(target, *nsid))
                    .ok_or("its name is not UTF-8, or has a space")
            }
            (Self::Spdk, _) => Err("SPDK drives controllers, and this is a file or memory"),
        }
    }
}

/// A path in a target: commas are doubled there.
fn escaped(path: &str) -> String {
    path.replace(',', ",,")
}

/// A target with the option that names a namespace.
fn with_nsid(target: String, nsid: Option<u32>) -> String {
    match nsid {
        Some(nsid) => format!("{target},nsid={nsid}"),
        None => target,
    }
}

/// The target of xtent's own driver for one of SPDK's.
fn own_way(id: &TransportId, nsid: Option<u32>) -> Result<String, &'static str> {
    match id.transport {
        Transport::VfioUser => Ok(with_nsid(
            format!("vfio-user:{}", escaped(&id.address)),
            nsid,
        )),
        Transport::Pcie => Ok(match nsid {
            Some(nsid) => format!("pci:{}/{nsid}", id.address),
            None => format!("pci:{}", id.address),
        }),
        Transport::Tcp | Transport::Rdma => {
            Err("xtent's own driver reaches controllers by pci: and vfio-user: only")
        }
    }
}

/// The options that say which blocks are accessed and how, for whichever engine opens the target.
/// Those of the embedded controller (`mdts`, `noiob`, `vwc`, `threaded`, `inline`) and of xtent's
/// driver (`dbbuf`) are not among them.
fn carried_options(spec: &TargetSpec) -> String {
    // Every field is named here: a new option must not be dropped unseen.
    let TargetSpec {
        text: _,
        kind,
        lba_bytes,
        mdts: _,
        noiob_blocks: _,
        queue_depth,
        volatile_write_cache: _,
        wait,
        shadow_doorbells: _,
        controller: _,
        read_only,
        no_recovery,
        no_replay,
        discard,
        partition,
        offset_bytes,
        allow_in_use,
    } = spec;
    let is_file = matches!(kind, TargetKind::Image(_) | TargetKind::Uring(_));
    let lba_bytes = lba_bytes.filter(|_| is_file);
    let with_values = [
        lba_bytes.map(|bytes| format!(",lba={bytes}")),
        queue_depth.map(|depth| format!(",depth={depth}")),
        wait.map(|wait| format!(",wait={}", wait.name())),
        partition
            .as_ref()
            .map(|wanted| format!(",part={}", escaped(wanted))),
        offset_bytes.map(|bytes| format!(",offset={bytes}")),
        discard.map(|yes| format!(",discard={}", if yes { "on" } else { "off" })),
    ];
    let flags = [
        (*read_only, ",readonly"),
        (*no_recovery, ",norecovery"),
        (*no_replay, ",noreplay"),
        (*allow_in_use, ",inuse"),
    ];
    let flags = flags.iter().filter(|(given, _)| *given);
    let flags = flags.map(|(_, option)| (*option).to_owned());
    with_values.into_iter().flatten().chain(flags).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_target_is_named_as_each_engine_names_it() {
        let of = |engine: EngineName, text: &str| engine.target(&TargetSpec::parse(text).unwrap());
        let ok = |text: &str| Ok(text.to_owned());
        use EngineName::{Native, Spdk, Uring};
        assert_eq!(of(Native, "image:a,,b"), ok("image:a,,b"));
        assert_eq!(of(Uring, "image:a,,b"), ok("uring:a,,b"));
        assert!(of(Spdk, "image:a").is_err());
        assert_eq!(
            of(Spdk, "pci:01:00.0"),
            ok("spdk:trtype=PCIe traddr=0000:01:00.0")
        );
        assert!(of(Uring, "pci:01:00.0").is_err());
        for target in ["vfio-user:/run/x", "vfio-user:/run/x/cntrl"] {
            assert_eq!(of(Native, target), ok(target));
            assert_eq!(of(Spdk, target), ok("spdk:trtype=VFIOUSER traddr=/run/x"));
        }
        let spdk = "spdk:trtype=VFIOUSER traddr=/run/x";
        assert_eq!(of(Native, spdk), ok("vfio-user:/run/x"));
        assert!(of(Native, "spdk:trtype=TCP traddr=127.0.0.1").is_err());
        assert!(of(Native, "uring:/dev/null").is_err());
        assert_eq!(
            of(Spdk, "vfio-user:/run/x,,y"),
            ok("spdk:trtype=VFIOUSER traddr=/run/x,,y")
        );
        assert!(of(Spdk, "vfio-user:/run/x y").is_err());
    }

    /// Otherwise the other engine would access, and write, the whole device instead of a part of
    /// it.
    #[test]
    fn options_are_carried_to_the_other_engine() {
        use EngineName::{Native, Spdk, Uring};
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let (image, uring) = (format!("image:{path}"), format!("uring:{path}"));
        let nsid = |name: &str| format!("{name},nsid=2");
        let (pci, pcie) = ("pci:0000:01:00.0", "spdk:trtype=PCIe traddr=0000:01:00.0");
        let (socket, vfio_user) = ("vfio-user:/run/x", "spdk:trtype=VFIOUSER traddr=/run/x");
        let pairs = [
            (image.clone(), Uring, uring.clone()),
            (uring.clone(), Native, image.clone()),
            (pci.to_owned(), Spdk, pcie.to_owned()),
            (pcie.to_owned(), Native, pci.to_owned()),
            (format!("{pci}/2"), Spdk, nsid(pcie)),
            (nsid(pcie), Native, format!("{pci}/2")),
            (socket.to_owned(), Spdk, vfio_user.to_owned()),
            (vfio_user.to_owned(), Native, socket.to_owned()),
            (nsid(vfio_user), Native, nsid(socket)),
        ];
        for (from, engine, to) in &pairs {
            let mut sets = vec![
                "",
                ",part=2",
                ",part=a,,b=c",
                ",offset=0",
                ",offset=1048576,readonly",
                ",norecovery",
                ",inuse",
                ",depth=64,wait=interrupt,part=2,readonly,norecovery,inuse",
                ",wait=adaptive",
            ];
            if *from == image || *from == uring {
                sets.push(",lba=4096,part=1");
            }
            for options in sets {
                let given = TargetSpec::parse(&format!("{from}{options}")).unwrap();
                let target = engine.target(&given).unwrap();
                assert_eq!(target, format!("{to}{options}"));
                let other = TargetSpec::parse(&target).unwrap();
                assert_eq!(
                    TargetSpec {
                        text: given.text.clone(),
                        kind: given.kind.clone(),
                        ..other
                    },
                    given
                );
            }
        }
        let all = "image:x,lba=512,mdts=5,noiob=256,vwc=off,dbbuf=on,threaded,part=1";
        let target = Uring.target(&TargetSpec::parse(all).unwrap()).unwrap();
        assert_eq!(
            target, "uring:x,lba=512,part=1",
            "the embedded controller's"
        );
    }
}
