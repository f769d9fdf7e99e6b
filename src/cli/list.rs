//! `xtent list`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::json;
use xtent::internals::spdk::TransportId;
use xtent::internals::target::{TargetKind, TargetSpec};
use xtent::{Error, ErrorKind};

use super::failure::Failure;
use super::values::time;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    xtent list\n  \
    xtent list 'spdk:trtype=TCP traddr=192.0.2.1'")]
pub(super) struct ListArgs {
    /// A discovery service, such as 'spdk:trtype=TCP traddr=192.0.2.1 trsvcid=8009'; without it,
    /// the NVMe controllers of this machine are listed
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    /// How long the service may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    timeout: Duration,
}

/// A controller of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Local {
    /// The target by which xtent opens it, whichever driver has it now.
    target: String,
    /// The PCI driver that has it.
    driver: Option<String>,
    /// The kernel's name for it.
    device: Option<String>,
    model: Option<String>,
    serial: Option<String>,
    numa_node: Option<i32>,
    iommu_group: Option<String>,
}

/// A subsystem that a discovery service offers.
#[derive(Debug, Clone, Serialize)]
struct DiscoveredSubsystem {
    /// By which xtent opens it, if it can.
    target: Option<String>,
    kind: &'static str,
    subnqn: String,
}

pub(super) fn run(args: &ListArgs) -> Result<(), Failure> {
    let (value, lines) = match &args.target {
        None => {
            let found = local(Path::new("/sys"));
            (json!({ "controllers": found }), table(&found))
        }
        Some(target) => {
            let offers = offers(target, args.timeout)?;
            let line = |offer: &DiscoveredSubsystem| match &offer.target {
                Some(target) => format!("{:9}  {target}", offer.kind),
                None => format!(
                    "{:9}  {} (by no transport to here)",
                    offer.kind, offer.subnqn
                ),
            };
            let lines = offers.iter().map(line).collect();
            (json!({ "offers": offers }), lines)
        }
    };
    let mut out = super::output::text_stdout()?;
    if args.json {
        super::output::print_json(&value)?;
    } else {
        for line in lines {
            writeln!(out, "{line}")?;
        }
    }
    Ok(out.flush()?)
}

/// Asks a discovery service.
fn offers(target: &str, timeout: Duration) -> Result<Vec<DiscoveredSubsystem>, Failure> {
    let spec = TargetSpec::parse(target)?;
    let TargetKind::Spdk { id, .. } = &spec.kind else {
        let detail = "discovery services are spdk:trtype=TCP or spdk:trtype=RDMA targets";
        return Err(Error::new(ErrorKind::InvalidInput, detail)
            .on_device(target)
            .into());
    };
    discover(id, timeout).map_err(|error| Failure::target(error.during("list").on_device(target)))
}

#[cfg(feature = "spdk")]
fn discover(id: &TransportId, timeout: Duration) -> xtent::Result<Vec<DiscoveredSubsystem>> {
    let entries = xtent::internals::spdk::discover(id, timeout)?;
    let offer = |entry: &xtent::internals::spdk::DiscoveryEntry| DiscoveredSubsystem {
        target: entry.target(),
        subnqn: entry.subnqn.clone(),
        kind: if entry.discovery {
            "discovery"
        } else {
            "disks"
        },
    };
    Ok(entries.iter().map(offer).collect())
}

#[cfg(not(feature = "spdk"))]
fn discover(_: &TransportId, _: Duration) -> xtent::Result<Vec<DiscoveredSubsystem>> {
    Err(xtent::internals::spdk::not_built())
}

/// Class code of an NVMe I/O controller, as sysfs writes it.
const CLASS_NVME: &str = "0x010802";

/// The NVMe controllers below a sysfs, by address.
fn local(sysfs: &Path) -> Vec<Local> {
    let Ok(entries) = fs::read_dir(sysfs.join("bus/pci/devices")) else {
        return Vec::new();
    };
    let found: BTreeMap<_, _> = entries
        .flatten()
        .filter_map(|entry| {
            let address = entry.file_name().into_string().ok()?;
            let one = controller(&entry.path(), &address)?;
            Some((address, one))
        })
        .collect();
    found.into_values().collect()
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

/// What a device's directory says of it, if it is an NVMe controller.
fn controller(path: &Path, address: &str) -> Option<Local> {
    if !read(&path.join("class"))?.starts_with(CLASS_NVME) {
        return None;
    }
    let link = |name: &str| {
        let to = fs::read_link(path.join(name)).ok()?;
        Some(to.file_name()?.to_str()?.to_owned())
    };
    // What the controller says of itself is known only to a driver that has it.
    let kernel = fs::read_dir(path.join("nvme")).ok();
    let kernel = kernel.and_then(|mut names| names.next()?.ok());
    let about = |name: &str| read(&kernel.as_ref()?.path().join(name));
    let node = read(&path.join("numa_node")).and_then(|node| node.parse().ok());
    Some(Local {
        target: format!("pci:{address}"),
        driver: link("driver"),
        device: kernel
            .as_ref()
            .and_then(|kernel| kernel.file_name().into_string().ok()),
        model: about("model"),
        serial: about("serial"),
        numa_node: node.filter(|&node| node >= 0),
        iommu_group: link("iommu_group"),
    })
}

fn table(found: &[Local]) -> Vec<String> {
    if found.is_empty() {
        return vec!["no NVMe controllers on this machine's PCI buses".to_owned()];
    }
    let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut lines = vec![format!(
        "{:18} {:9} {:8} {:5} {:5} {:22} MODEL",
        "TARGET", "DRIVER", "DEVICE", "NODE", "GROUP", "SERIAL"
    )];
    lines.extend(found.iter().map(|one| {
        format!(
            "{:18} {:9} {:8} {:5} {:5} {:22} {}",
            one.target,
            or(&one.driver),
            or(&one.device),
            or(&one.numa_node.map(|node| node.to_string())),
            or(&one.iommu_group),
            or(&one.serial),
            or(&one.model)
        )
    }));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn controllers_are_found_whoever_has_them() {
        let sysfs = tempfile::tempdir().unwrap();
        let make = |address: &str, class: &str, driver: &str| {
            let path = sysfs.path().join("bus/pci/devices").join(address);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("class"), class).unwrap();
            fs::write(path.join("numa_node"), "-1\n").unwrap();
            symlink(format!("../../drivers/{driver}"), path.join("driver")).unwrap();
            path
        };
        make("0000:00:1f.2", "0x010601\n", "ahci");
        make("0000:02:00.0", "0x010802\n", "vfio-pci");
        let kernel = make("0000:01:00.0", "0x010802\n", "nvme").join("nvme/nvme3");
        fs::create_dir_all(&kernel).unwrap();
        fs::write(kernel.join("model"), "Fast one    \n").unwrap();
        fs::write(kernel.join("serial"), "S1\n").unwrap();
        let found = local(sysfs.path());
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].target, "pci:0000:01:00.0");
        assert_eq!(found[0].device.as_deref(), Some("nvme3"));
        assert_eq!(found[0].model.as_deref(), Some("Fast one"));
        assert_eq!(found[1].driver.as_deref(), Some("vfio-pci"));
        assert_eq!((found[1].model.clone(), found[1].numa_node), (None, None));
        assert_eq!(table(&found).len(), 3);
    }
}
