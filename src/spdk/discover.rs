//! What a discovery service offers (NVMe base specification 2.0c, 5.16.1.23).

use std::ffi::{c_char, c_void};
use std::time::Duration;

use spdk_sys as ffi;

use super::attach::{AttachHost, attach, detach, new_hostnqn};
use super::controller::environment_for;
use super::env::words;
use super::transport::{DISCOVERY_NQN, TransportId};
use crate::error::{Error, ErrorKind, Result};

/// Entries that are read: more than any target has, and a bound for one that lies.
const MOST_ENTRIES: usize = 4096;

/// A subsystem that a discovery service names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryEntry {
    /// `TCP`, `RDMA`, `FC` or a number.
    pub transport: String,
    /// `IPv4`, `IPv6`, `IB`, `FC` or a number.
    pub family: String,
    /// The address.
    pub address: String,
    /// The port.
    pub service: String,
    /// The subsystem's name.
    pub subnqn: String,
    /// It is a discovery service, not a disk.
    pub discovery: bool,
}

impl DiscoveryEntry {
    /// The target by which it is opened; `None` for a transport over which there is nothing to be
    /// reached from here (a target also names what it serves on its own machine).
    pub fn target(&self) -> Option<String> {
        let id = format!(
            "trtype={} adrfam={} traddr={} trsvcid={} subnqn={}",
            self.transport, self.family, self.address, self.service, self.subnqn
        );
        let known: TransportId = id.parse().ok()?;
        known
            .transport
            .is_fabrics()
            .then(|| format!("spdk:{known}"))
    }
}

/// Asks a discovery service what it offers. `id` needs no `subnqn`; its port is 8009 or that of the
/// target.
///
/// # Errors
/// When the service cannot be reached or does not answer in time.
pub fn discover(id: &TransportId, timeout: Duration) -> Result<Vec<DiscoveryEntry>> {
    if !id.transport.is_fabrics() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "there is no discovery over {}: give TCP or RDMA",
                id.transport.name()
            ),
        ));
    }
    environment_for(id)?;
    let mut id = id.clone();
    id.subnqn = Some(DISCOVERY_NQN.to_owned());
    let hostnqn = match &id.hostnqn {
        Some(name) => name.clone(),
        None => new_hostnqn()?,
    };
    let host = AttachHost {
        id,
        hostnqn,
        keep_alive: Duration::ZERO,
        connect_timeout: timeout,
        admin_timeout: timeout,
    };
    let attached = attach(&host, timeout)?;
    let mut entries: Vec<DiscoveryEntry> = Vec::new();
    let millis = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    // SAFETY: attached; the callback gets the list, which outlives the call.
    let rc = unsafe {
        ffi::xtent_spdk_discover(
            attached.0,
            millis,
            Some(each),
            (&raw mut entries).cast::<c_void>(),
        )
    };
    let said = words();
    detach(attached);
    match rc {
        0 => Ok(entries),
        rc => Err(Error::system(
            format!("the discovery log cannot be read{said}"),
            std::io::Error::from_raw_os_error(-rc),
        )),
    }
}

fn text<const N: usize>(field: &[c_char; N]) -> String {
    let bytes = field.iter().map(|&c| c.cast_unsigned());
    let bytes: Vec<u8> = bytes.take_while(|&byte| byte != 0).collect();
    // A service is not trusted: what would move the cursor is not printed.
    let text = String::from_utf8_lossy(&bytes);
    text.trim().chars().filter(|c| !c.is_control()).collect()
}

fn named(number: u8, names: &[(u8, &str)]) -> String {
    let found = names.iter().find(|(known, _)| *known == number);
    found.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
}

unsafe extern "C" fn each(context: *mut c_void, entry: *const ffi::xtent_spdk_log_entry) {
    // SAFETY: the list that `discover` passed, which no other code uses during the call.
    let entries = unsafe { &mut *context.cast::<Vec<DiscoveryEntry>>() };
    // SAFETY: valid for this call.
    let entry = unsafe { &*entry };
    if entries.len() >= MOST_ENTRIES {
        return;
    }
    entries.push(DiscoveryEntry {
        transport: named(
            entry.trtype,
            &[(1, "RDMA"), (2, "FC"), (3, "TCP"), (254, "loop")],
        ),
        family: named(
            entry.adrfam,
            &[(1, "IPv4"), (2, "IPv6"), (3, "IB"), (4, "FC")],
        ),
        address: text(&entry.traddr),
        service: text(&entry.trsvcid),
        subnqn: text(&entry.subnqn),
        // Subsystem types 1 and 3 are discovery (5.16.1.23, figure 264).
        discovery: matches!(entry.subtype, 1 | 3),
    });
}
