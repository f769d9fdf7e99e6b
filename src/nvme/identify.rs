//! Learning what a controller and its namespaces are (identify, section 5.17), at bring-up, after a
//! reset, and when the controller says that something changed.

use zerocopy::FromBytes;

use super::admin::{Admin, AdminFailure};
use super::controller::Controller;
use super::dataset::DatasetLimits;
use super::info::{
    ControllerInfo, NamespaceInfo, other_command_set, parse_command_set, parse_controller,
    parse_namespace,
};
use super::spec::{
    CNS_ACTIVE_NAMESPACES, CNS_COMMAND_SET_CONTROLLER, CNS_CONTROLLER, CNS_DESCRIPTORS,
    CNS_NAMESPACE, CSI_NVM, FEAT_VOLATILE_WRITE_CACHE, IDENTIFY_BYTES, IdentifyController,
    IdentifyNamespace, IdentifyNvmController,
};
use crate::error::{Error, ErrorKind, Result};

/// The register value of NVMe 1.3.
const VERSION_1_3: u32 = 0x0001_0300;

/// Most namespaces that are looked at.
const MAX_NAMESPACES: usize = 4096;

/// Ids in one page of the list of active namespaces.
const IDS_AT_ONCE: usize = IDENTIFY_BYTES / 4;

/// Times that a namespace which seems to have changed is read before it is believed.
const SECOND_LOOKS: usize = 3;

impl Controller {
    /// Identifies the controller, all its namespaces, and its volatile write cache, but does not
    /// ask for the number of granted queues.
    pub(super) fn learn(&self, admin: &mut Admin) -> Result<ControllerInfo> {
        let bytes = self
            .identify(admin, CNS_CONTROLLER, 0)
            .map_err(|failure| failure.into_error("identify controller"))?;
        let data = IdentifyController::read_from_bytes(&bytes[..])
            .map_err(|_| Error::new(ErrorKind::Corrupt, "identify controller is too short"))?;
        let mut info = parse_controller(self.name(), self.port.cap, self.port.version(), &data)?;
        if info.deallocate {
            info.dataset = self
                .dataset_limits(admin)
                .map_err(|failure| failure.into_error("identify the NVM command set"))?;
        }
        let (ids, more) = self.active_namespaces(admin, data.nn.get())?;
        info.more_namespaces = more;
        for nsid in ids {
            let namespace = self
                .identify_namespace(admin, nsid, &info)
                .map_err(|failure| failure.into_error("identify namespace"))?;
            info.namespaces.push(namespace);
        }
        if info.volatile_write_cache {
            info.volatile_write_cache =
                match admin.feature(&self.port, &self.counters, FEAT_VOLATILE_WRITE_CACHE) {
                    Ok(value) => value & 1 == 1,
                    // It has one and does not say whether it is on: flushes are needed.
                    Err(AdminFailure::Status(_)) => true,
                    Err(failure) => {
                        return Err(failure.into_error("get feature volatile write cache"));
                    }
                };
        }
        Ok(info)
    }

    /// Brings the namespaces in `info` up to date: those `named`, or all.
    pub(super) fn identify_again(
        &self,
        admin: &mut Admin,
        info: &mut ControllerInfo,
        named: Option<&[u32]>,
    ) -> Result<(), AdminFailure> {
        // The highest id may have changed too; the list itself is bounded.
        let (ids, more) = match self.active_namespaces(admin, u32::MAX - 2) {
            Ok(found) => found,
            // A list of nonsense is not believed; what was known stays.
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(()),
            Err(_) => return Err(AdminFailure::Confused),
        };
        info.more_namespaces = more;
        let mut namespaces = Vec::with_capacity(ids.len());
        for nsid in ids {
            let known = info.namespace(nsid);
            let changed = named.is_none_or(|named| named.contains(&nsid));
            match known.filter(|_| !changed) {
                Some(known) => namespaces.push(known.clone()),
                None => match self.identify_namespace(admin, nsid, info) {
                    Ok(namespace) => namespaces.push(namespace),
                    // It went between the list and the look.
                    Err(AdminFailure::Status(_)) => {}
                    Err(failure) => return Err(failure),
                },
            }
        }
        info.namespaces = namespaces;
        Ok(())
    }

    fn identify(
        &self,
        admin: &mut Admin,
        cns: u32,
        nsid: u32,
    ) -> Result<Box<[u8; IDENTIFY_BYTES]>, AdminFailure> {
        admin.identify(&self.port, &self.counters, cns, nsid)
    }

    /// The active namespaces, ids ascending and at most `highest`, and whether there are more than
    /// are looked at.
    fn active_namespaces(&self, admin: &mut Admin, highest: u32) -> Result<(Vec<u32>, bool)> {
        let mut ids: Vec<u32> = Vec::new();
        loop {
            let after = ids.last().copied().unwrap_or(0);
            let bytes = match self.identify(admin, CNS_ACTIVE_NAMESPACES, after) {
                Ok(bytes) => bytes,
                // Controllers before NVMe 1.1 do not have the list: ids are without gaps.
                Err(AdminFailure::Status(_)) if ids.is_empty() => {
                    let all = 1..=highest;
                    let more = all.size_hint().0 > MAX_NAMESPACES;
                    return Ok((all.take(MAX_NAMESPACES).collect(), more));
                }
                Err(failure) => return Err(failure.into_error("identify active namespaces")),
            };
            let page = bytes.chunks_exact(4);
            let page = page.map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]]));
            let before = ids.len();
            ids.extend(page.take_while(|&id| id != 0));
            let fresh = &ids[before..];
            let ascending = fresh.first().is_none_or(|&first| first > after)
                && fresh.is_sorted_by(|a, b| a < b);
            if !ascending || fresh.last().is_some_and(|&last| last > highest) {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!(
                        "the list of active namespaces makes no sense: its ids do not ascend, or go \
                         beyond {highest}"
                    ),
                ));
            }
            if ids.len() > MAX_NAMESPACES {
                ids.truncate(MAX_NAMESPACES);
                return Ok((ids, true));
            }
            if ids.len() - before < IDS_AT_ONCE {
                return Ok((ids, false));
            }
        }
    }

    /// Identifies one namespace. Data that differs from the known is read again before it is used.
    fn identify_namespace(
        &self,
        admin: &mut Admin,
        nsid: u32,
        controller: &ControllerInfo,
    ) -> Result<NamespaceInfo, AdminFailure> {
        let mut found = self.read_namespace(admin, nsid, controller)?;
        let info = self.info();
        let Some(known) = info.namespace(nsid) else {
            return Ok(found);
        };
        for _ in 0..SECOND_LOOKS {
            if found.is_still(known) && found.blocks == known.blocks {
                break;
            }
            let again = self.read_namespace(admin, nsid, controller)?;
            if again == found {
                break;
            }
            found = again;
        }
        Ok(found)
    }

    fn read_namespace(
        &self,
        admin: &mut Admin,
        nsid: u32,
        controller: &ControllerInfo,
    ) -> Result<NamespaceInfo, AdminFailure> {
        let bytes = self.identify(admin, CNS_NAMESPACE, nsid)?;
        let data =
            IdentifyNamespace::read_from_bytes(&bytes[..]).map_err(|_| AdminFailure::Confused)?;
        let mut namespace = parse_namespace(nsid, &data, controller.atomic);
        let set = self.command_set(admin, nsid)?;
        if set != CSI_NVM {
            namespace.unusable = Some(other_command_set(set));
        }
        Ok(namespace)
    }

    /// What one dataset management command may cover. Controllers that do not say set no limits, as
    /// in nvme_init_non_mdts_limits().
    fn dataset_limits(&self, admin: &mut Admin) -> Result<DatasetLimits, AdminFailure> {
        if self.port.version() < VERSION_1_3 {
            return Ok(DatasetLimits::default());
        }
        // The NVM command set is 0 in CDW11.
        match self.identify(admin, CNS_COMMAND_SET_CONTROLLER, 0) {
            Ok(bytes) => {
                let data = IdentifyNvmController::read_from_bytes(&bytes[..])
                    .map_err(|_| AdminFailure::Confused)?;
                Ok(DatasetLimits::of(&data))
            }
            Err(AdminFailure::Status(_)) => Ok(DatasetLimits::default()),
            Err(failure) => Err(failure),
        }
    }

    /// The command set of a namespace. Controllers before NVMe 1.3 do not say; they know one only.
    fn command_set(&self, admin: &mut Admin, nsid: u32) -> Result<u8, AdminFailure> {
        if self.port.version() < VERSION_1_3 {
            return Ok(CSI_NVM);
        }
        match self.identify(admin, CNS_DESCRIPTORS, nsid) {
            Ok(bytes) => Ok(parse_command_set(&bytes[..])),
            Err(AdminFailure::Status(_)) => Ok(CSI_NVM),
            Err(failure) => Err(failure),
        }
    }
}
