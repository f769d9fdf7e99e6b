//! Whether both sides of a comparison read and write the same bytes, and leave the filesystem
//! whole.

use std::io::Read;

use xtent::volume::Volume;
use xtent::{Error, Result};

use super::check_interrupted;
use super::compare_plan::Plan;
use super::compare_run::{inside, kernel_run, xtent_run};
use super::medium::BenchMedium;
use super::mix::mix;
use super::outcome::Outcome;
use super::workload::{Rw, Workload};

/// Something that was checked, and what came of it.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Check {
    pub(crate) what: String,
    pub(crate) good: bool,
    pub(crate) result: String,
}

/// The file that was only read is as it was; the filesystem is whole.
pub(super) fn final_checks(
    plan: &Plan,
    medium: &mut BenchMedium,
    before: u32,
    checks: &mut Vec<Check>,
) -> Result<()> {
    let mut after = vec![(
        xtent_checksum(&medium.open(None)?, &plan.read_file)?,
        "xtent",
    )];
    if matches!(medium, BenchMedium::Disk(_)) {
        after.push((kernel_checksum(plan, medium)?, "the kernel"));
    }
    for (after, by) in after {
        checks.push(Check {
            what: format!("{} is unchanged after all rounds", plan.read_file),
            good: after == before,
            result: format!("CRC32C {before:08x} before, {after:08x} after by {by}"),
        });
    }
    check_interrupted()?;
    let on = match medium {
        BenchMedium::Image(_) => "image",
        BenchMedium::Disk(_) => "disk",
    };
    let repair = medium.check_clean()?;
    check_interrupted()?;
    if let Some(repair) = repair {
        checks.push(Check {
            what: format!("xfs_repair -n on the {on}"),
            good: repair.is_ok(),
            result: repair.err().unwrap_or_else(|| "clean".into()),
        });
    }
    Ok(())
}

fn checksum(mut reader: impl Read) -> Result<u32> {
    let mut chunk = vec![0; 1 << 20];
    let mut crc = 0;
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return Ok(crc),
            Ok(n) => crc = crc32c::crc32c_append(crc, &chunk[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::system("cannot read the file", e)),
        }
        check_interrupted()?;
    }
}

pub(super) fn xtent_checksum(volume: &Volume, path: &str) -> Result<u32> {
    let mut io = volume.io()?;
    let file = volume.open_file(&mut io, path)?;
    checksum(file.reader(&mut io)?)
}

pub(super) fn kernel_checksum(plan: &Plan, medium: &mut BenchMedium) -> Result<u32> {
    let mount = medium.mount()?;
    let path = inside(&mount, &plan.read_file)?;
    let file = std::fs::File::open(path).map_err(|e| Error::system("cannot open the file", e))?;
    let crc = checksum(file)?;
    mount.unmount()?;
    Ok(crc)
}

/// Each side writes the whole file to overwrite with a pattern, and the other reads and checks it.
pub(super) fn cross_check(
    plan: &Plan,
    medium: &mut BenchMedium,
    write_bytes: u64,
    checks: &mut Vec<Check>,
) -> Result<()> {
    let whole = |rw, seed| Workload {
        name: "check".into(),
        rw,
        rwmixread: 0,
        block_bytes: 128 << 10,
        iodepth: if plan.buffered { 1 } else { 8 },
        size_bytes: write_bytes,
        verify: true,
        seed,
        buffered: plan.buffered,
        ..Workload::default()
    };
    let (first, second) = (mix(plan.seed), mix(!plan.seed));
    xtent_run(plan, &medium.open(None)?, &whole(Rw::Write, first), &|_| {})?;
    check_interrupted()?;
    if plan.leave_kernel_out.is_some() {
        let read = xtent_run(plan, &medium.open(None)?, &whole(Rw::Read, first), &|_| {});
        check_interrupted()?;
        checks.push(pattern_check(
            "xtent wrote, xtent read after reopening",
            read,
        ));
        return Ok(());
    }
    let kernel = medium.mount()?;
    let read =
        kernel_run(plan, &kernel, &whole(Rw::Read, first), &|_| {}).map(|(outcome, _)| outcome);
    check_interrupted()?;
    checks.push(pattern_check("xtent wrote, the kernel read", read));
    kernel_run(plan, &kernel, &whole(Rw::Write, second), &|_| {})?;
    kernel.unmount()?;
    check_interrupted()?;
    let read = xtent_run(plan, &medium.open(None)?, &whole(Rw::Read, second), &|_| {});
    check_interrupted()?;
    checks.push(pattern_check("the kernel wrote, xtent read", read));
    Ok(())
}

fn pattern_check(what: &str, read: Result<Outcome>) -> Check {
    let (good, result) = match read {
        Ok(outcome) => (
            outcome.verified_blocks > 0,
            format!("{} blocks of 128 KiB agree", outcome.verified_blocks),
        ),
        Err(error) => (false, error.to_string()),
    };
    Check {
        what: what.into(),
        good,
        result,
    }
}
