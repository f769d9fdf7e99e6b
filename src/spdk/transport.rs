//! Transport ids: where a controller is, in the words that SPDK uses for it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::device::vfio::PciAddress;
use crate::error::{Error, ErrorKind, Result};

/// How a controller is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A PCI controller of this machine, through SPDK's own access to PCI.
    Pcie,
    /// NVMe over TCP.
    Tcp,
    /// NVMe over RDMA.
    Rdma,
    /// A controller that another process serves on a socket.
    VfioUser,
}

impl Transport {
    /// Its name in a transport id.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pcie => "PCIe",
            Self::Tcp => "TCP",
            Self::Rdma => "RDMA",
            Self::VfioUser => "VFIOUSER",
        }
    }

    /// Whether controllers are reached over a network (NVMe over fabrics).
    pub fn is_fabrics(self) -> bool {
        matches!(self, Self::Tcp | Self::Rdma)
    }

    /// Whether SPDK can abort commands: by vfio-user it would call a function that it has not
    /// (v26.05).
    #[cfg(feature = "spdk")]
    pub(super) fn has_aborts(self) -> bool {
        self != Self::VfioUser
    }

    /// The socket that a controller of this transport at this address is served on, if it is.
    #[cfg(feature = "spdk")]
    pub(super) fn socket(self, address: &str) -> Option<std::path::PathBuf> {
        (self == Self::VfioUser).then(|| std::path::Path::new(address).join("cntrl"))
    }
}

/// What kind of address `traddr` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressFamily {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Where a controller is: `trtype=TCP adrfam=IPv4 traddr=192.0.2.1 trsvcid=4420 subnqn=nqn...`.
///
/// Words may be written `key=value` or, as SPDK's tools do, `key:value`.
///
/// ```
/// use xtent::internals::spdk::{Transport, TransportId};
/// let id: TransportId = "trtype=TCP traddr=192.0.2.1 subnqn=nqn.2016-06.io.spdk:cnode1".parse()?;
/// assert_eq!((id.transport, id.service.as_str()), (Transport::Tcp, "4420"));
/// # Ok::<(), xtent::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TransportId {
    /// `trtype`.
    pub transport: Transport,
    /// `adrfam`; of fabrics only, and found from the address when it is not given.
    pub family: Option<AddressFamily>,
    /// `traddr`: an IP address, a PCI address, or the directory of a socket.
    pub address: String,
    /// `trsvcid`: the port; empty where there is none.
    pub service: String,
    /// `subnqn`: the subsystem.
    pub subnqn: Option<String>,
    /// `hostnqn`: the name under which this host comes; a new one each time when it is not given.
    pub hostnqn: Option<String>,
    /// `hostaddr`: the address of this host to come from.
    pub hostaddr: Option<String>,
}

#[cfg(feature = "spdk")]
/// The subsystem that every discovery service is (NVMe base specification 2.0c, 3.1.2.3).
pub(super) const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// Longest name of a subsystem or host, in bytes (base specification 2.0c, 4.5).
const NQN_MAX_BYTES: usize = 223;

const EXAMPLE: &str = "an example is `trtype=TCP traddr=192.0.2.1 trsvcid=4420 subnqn=nqn.2016-06.io.spdk:cnode1`, \
                       `trtype=PCIe traddr=0000:01:00.0` or `trtype=VFIOUSER traddr=/run/x`";

fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, detail)
}

/// The words as they were found.
#[derive(Default)]
struct Words {
    trtype: Option<String>,
    adrfam: Option<String>,
    traddr: Option<String>,
    trsvcid: Option<String>,
    subnqn: Option<String>,
    hostnqn: Option<String>,
    hostaddr: Option<String>,
}

impl Words {
    fn read(text: &str) -> Result<Self> {
        let mut words = Self::default();
        for word in text.split_whitespace() {
            let Some((key, value)) = word
                .find(['=', ':'])
                .map(|at| (&word[..at], &word[at + 1..]))
            else {
                return Err(invalid(format!("`{word}` is not `key=value`: {EXAMPLE}")));
            };
            let place = match key.to_ascii_lowercase().as_str() {
                "trtype" => &mut words.trtype,
                "adrfam" => &mut words.adrfam,
                "traddr" => &mut words.traddr,
                "trsvcid" => &mut words.trsvcid,
                "subnqn" => &mut words.subnqn,
                "hostnqn" => &mut words.hostnqn,
                "hostaddr" => &mut words.hostaddr,
                _ => {
                    return Err(invalid(format!(
                        "`{key}` is not a word of a transport id: those are trtype, adrfam, traddr, trsvcid, \
                         subnqn, hostnqn and hostaddr; {EXAMPLE}"
                    )));
                }
            };
            if value.is_empty() || value.contains('\0') {
                return Err(invalid(format!("`{key}` has no value: {EXAMPLE}")));
            }
            if place.replace(value.to_owned()).is_some() {
                return Err(invalid(format!("`{key}` is given twice")));
            }
        }
        Ok(words)
    }

    fn transport(&self) -> Result<Transport> {
        let name = self.trtype.as_deref();
        let name = name.ok_or_else(|| invalid(format!("`trtype` is missing: {EXAMPLE}")))?;
        match name.to_ascii_uppercase().as_str() {
            "PCIE" => Ok(Transport::Pcie),
            "TCP" => Ok(Transport::Tcp),
            "RDMA" => Ok(Transport::Rdma),
            "VFIOUSER" | "VFIO-USER" => Ok(Transport::VfioUser),
            _ => Err(invalid(format!(
                "`{name}` is not a transport: give PCIe, TCP, RDMA or VFIOUSER"
            ))),
        }
    }
}

impl FromStr for TransportId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let words = Words::read(text)?;
        let transport = words.transport()?;
        let address = words
            .traddr
            .clone()
            .ok_or_else(|| invalid(format!("`traddr` is missing: {EXAMPLE}")))?;
        let id = match transport {
            Transport::Tcp | Transport::Rdma => fabrics(transport, address, words)?,
            Transport::Pcie | Transport::VfioUser => local(transport, address, words)?,
        };
        for nqn in [&id.subnqn, &id.hostnqn].into_iter().flatten() {
            if !nqn.starts_with("nqn.") || nqn.len() > NQN_MAX_BYTES {
                return Err(invalid(format!(
                    "`{nqn}` is not a name: one starts with `nqn.` and has at most {NQN_MAX_BYTES} bytes"
                )));
            }
        }
        Ok(id)
    }
}

fn fabrics(transport: Transport, address: String, words: Words) -> Result<TransportId> {
    let ip: IpAddr = address
        .parse()
        .map_err(|_| invalid(format!("`{address}` is not an IP address")))?;
    let family = match ip {
        IpAddr::V4(_) => AddressFamily::Ipv4,
        IpAddr::V6(_) => AddressFamily::Ipv6,
    };
    let said = words.adrfam.as_deref().map(str::to_ascii_lowercase);
    match said.as_deref() {
        None => {}
        Some("ipv4") if family == AddressFamily::Ipv4 => {}
        Some("ipv6") if family == AddressFamily::Ipv6 => {}
        Some(other) => {
            return Err(invalid(format!(
                "`{address}` is not an address of the family `{other}`: leave `adrfam` out, or give IPv4 or IPv6"
            )));
        }
    }
    let service = words.trsvcid.unwrap_or_else(|| "4420".to_owned());
    if service.parse::<u16>().ok().is_none_or(|port| port == 0) {
        return Err(invalid(format!(
            "`{service}` is not a port: trsvcid is a number from 1 to 65535, usually 4420"
        )));
    }
    Ok(TransportId {
        transport,
        family: Some(family),
        address,
        service,
        subnqn: words.subnqn,
        hostnqn: words.hostnqn,
        hostaddr: words.hostaddr,
    })
}

fn local(transport: Transport, address: String, words: Words) -> Result<TransportId> {
    let name = transport.name();
    for (key, given) in [
        ("adrfam", &words.adrfam),
        ("trsvcid", &words.trsvcid),
        ("hostaddr", &words.hostaddr),
    ] {
        if given.is_some() {
            return Err(invalid(format!(
                "`{key}` does not apply to {name}: omit it"
            )));
        }
    }
    let address = match transport {
        Transport::Pcie => address.parse::<PciAddress>()?.to_string(),
        // SPDK names the directory, others the socket in it.
        _ => match address.strip_suffix("/cntrl") {
            Some(directory) => directory.to_owned(),
            None => address,
        },
    };
    Ok(TransportId {
        transport,
        family: None,
        address,
        service: String::new(),
        subnqn: words.subnqn,
        hostnqn: words.hostnqn,
        hostaddr: None,
    })
}

impl fmt::Display for TransportId {
    /// In the words that it is parsed from.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "trtype={}", self.transport.name())?;
        if let Some(family) = self.family {
            let family = match family {
                AddressFamily::Ipv4 => "IPv4",
                AddressFamily::Ipv6 => "IPv6",
            };
            write!(f, " adrfam={family}")?;
        }
        write!(f, " traddr={}", self.address)?;
        if !self.service.is_empty() {
            write!(f, " trsvcid={}", self.service)?;
        }
        match &self.subnqn {
            Some(nqn) => write!(f, " subnqn={nqn}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_and_written() {
        for (text, written) in [
            (
                "trtype:tcp traddr:127.0.0.1 subnqn:nqn.2016-06.io.spdk:cnode1",
                "trtype=TCP adrfam=IPv4 traddr=127.0.0.1 trsvcid=4420 subnqn=nqn.2016-06.io.spdk:cnode1",
            ),
            (
                "trtype=RDMA adrfam=ipv6 traddr=fe80::1 trsvcid=4421",
                "trtype=RDMA adrfam=IPv6 traddr=fe80::1 trsvcid=4421",
            ),
            (
                "trtype=PCIe traddr=01:00.0",
                "trtype=PCIe traddr=0000:01:00.0",
            ),
            (
                "trtype=VFIOUSER traddr=/run/x/cntrl",
                "trtype=VFIOUSER traddr=/run/x",
            ),
        ] {
            let id: TransportId = text.parse().unwrap();
            assert_eq!(id.to_string(), written);
            assert_eq!(written.parse::<TransportId>().unwrap(), id);
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, words) in [
            ("", "`trtype` is missing"),
            ("trtype=TCP", "`traddr` is missing"),
            ("trtype=NFS traddr=1.2.3.4", "PCIe, TCP, RDMA or VFIOUSER"),
            ("trtype=TCP traddr=host.example", "not an IP address"),
            ("trtype=TCP traddr=1.2.3.4 trsvcid=0", "not a port"),
            (
                "trtype=TCP traddr=1.2.3.4 adrfam=IPv6",
                "not an address of the family",
            ),
            (
                "trtype=TCP traddr=1.2.3.4 subnqn=cnode1",
                "starts with `nqn.`",
            ),
            ("trtype=TCP trtype=TCP", "given twice"),
            ("trtype=TCP traddr", "not `key=value`"),
            ("trtype=TCP nsid=1", "not a word of a transport id"),
            ("trtype=PCIe traddr=nvme0", "not a PCI address"),
            (
                "trtype=PCIe traddr=01:00.0 trsvcid=1",
                "does not apply to PCIe",
            ),
        ] {
            let error = text.parse::<TransportId>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
            assert!(error.to_string().contains(words), "{text}: {error}");
        }
    }
}
