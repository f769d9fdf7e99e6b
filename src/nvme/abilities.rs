//! Names and limits of what a controller offers (identify, section 5.17.2; NVM 2.1.4 for atomic
//! writes).

use super::spec::{IdentifyController, IdentifyNamespace, NSFEAT_ATOMIC};

/// Writes that are all or nothing, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AtomicLimits {
    /// Against other commands (AWUN, NAWUN).
    pub normal_blocks: u32,
    /// Against loss of power (AWUPF, NAWUPF).
    pub power_fail_blocks: u32,
    /// Of compare and write (ACWU, NACWU).
    pub compare_and_write_blocks: u32,
    /// A write that crosses a multiple of so many blocks is not atomic (NABSN); 0 for no
    /// boundaries.
    pub boundary_blocks: u32,
    /// The first block after a boundary (NABO).
    pub boundary_offset_blocks: u16,
    /// Boundaries against loss of power (NABSPF); 0 for none.
    pub power_fail_boundary_blocks: u32,
}

impl AtomicLimits {
    pub(super) fn of_controller(data: &IdentifyController) -> Self {
        Self {
            normal_blocks: u32::from(data.awun.get()) + 1,
            power_fail_blocks: u32::from(data.awupf.get()) + 1,
            compare_and_write_blocks: u32::from(data.acwu.get()) + 1,
            ..Self::default()
        }
    }

    /// Those of a namespace: the sizes are the controller's unless it has its own, the boundaries
    /// are its own.
    pub(super) fn of_namespace(data: &IdentifyNamespace, controller: Self) -> Self {
        // 0 is no boundary, and not one of a block.
        let boundary = |field: u16| match field {
            0 => 0,
            zero_based => u32::from(zero_based) + 1,
        };
        let own = data.nsfeat & NSFEAT_ATOMIC != 0;
        let blocks = |field: u16, controllers: u32| match own {
            true => u32::from(field) + 1,
            false => controllers,
        };
        Self {
            normal_blocks: blocks(data.nawun.get(), controller.normal_blocks),
            power_fail_blocks: blocks(data.nawupf.get(), controller.power_fail_blocks),
            compare_and_write_blocks: blocks(data.nacwu.get(), controller.compare_and_write_blocks),
            boundary_blocks: boundary(data.nabsn.get()),
            boundary_offset_blocks: data.nabo.get(),
            power_fail_boundary_blocks: boundary(data.nabspf.get()),
        }
    }
}

const ADMIN_COMMANDS: [&str; 11] = [
    "security",
    "format",
    "firmware",
    "namespace-management",
    "self-test",
    "directives",
    "nvme-mi",
    "virtualization",
    "doorbell-buffer",
    "lba-status",
    "lockdown",
];

const NVM_COMMANDS: [&str; 9] = [
    "compare",
    "write-uncorrectable",
    "dataset-management",
    "write-zeroes",
    "save-features",
    "reservations",
    "timestamp",
    "verify",
    "copy",
];

const WARNINGS: [&str; 6] = [
    "spare-low",
    "temperature",
    "reliability-degraded",
    "read-only",
    "backup-failed",
    "persistent-memory-unreliable",
];

fn names(bits: u32, table: &[&str]) -> Vec<String> {
    (0..32)
        .filter(|bit| bits >> bit & 1 == 1)
        .map(|bit| match table.get(bit) {
            Some(name) => (*name).to_owned(),
            None => format!("bit-{bit}"),
        })
        .collect()
}

/// Names of the optional admin commands in OACS; bits that have none here as `bit-N`.
pub fn admin_command_names(oacs: u16) -> Vec<String> {
    names(oacs.into(), &ADMIN_COMMANDS)
}

/// Names of the optional NVM commands in ONCS; bits that have none here as `bit-N`.
pub fn nvm_command_names(oncs: u16) -> Vec<String> {
    names(oncs.into(), &NVM_COMMANDS)
}

/// Names of the critical warnings in a SMART log; bits that have none here as `bit-N`.
pub fn critical_warning_names(warning: u8) -> Vec<String> {
    names(warning.into(), &WARNINGS)
}

/// What SGLS says of scatter gather lists, in words; empty for no support.
pub fn sgl_names(sgls: u32) -> Vec<String> {
    let mut all = Vec::new();
    match sgls & 3 {
        1 => all.push("supported".to_owned()),
        2 => all.push("dword-aligned".to_owned()),
        _ => return all,
    }
    let rest = [
        (2, "keyed"),
        (16, "bit-bucket"),
        (17, "metadata-contiguous"),
        (18, "longer-than-data"),
        (19, "metadata-sgl"),
        (20, "offset-addresses"),
    ];
    let given = rest.iter().filter(|(bit, _)| sgls >> bit & 1 == 1);
    all.extend(given.map(|(_, name)| (*name).to_owned()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_names_also_those_of_the_future() {
        // QEMU 7.2: namespace management, format, doorbell buffer.
        assert_eq!(
            admin_command_names(0x10a),
            ["format", "namespace-management", "doorbell-buffer"]
        );
        assert_eq!(nvm_command_names(1 << 15 | 8), ["write-zeroes", "bit-15"]);
        assert_eq!(critical_warning_names(0x82), ["temperature", "bit-7"]);
        assert_eq!(sgl_names(0x1_0001), ["supported", "bit-bucket"]);
        assert!(sgl_names(0x1_0000).is_empty());
    }
}
