//! The network configuration on standard input (CNI SPEC, "Plugin configuration objects").

use std::net::IpAddr;

use podswitch_policy::rule::Protocol;
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::CniError;
use super::ipam::{AddressRange, RangeSet};
use super::key::{Key, check_container, check_interface};
use super::version::Version;
use crate::attachment::InterfaceKind;

/// Maximum length of a network name, in bytes.
const MAX_NETWORK: usize = 253;

/// A port of the node that is forwarded to the container (`portMappings`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// The node's address; `None`: all.
    pub address: Option<IpAddr>,
    /// Protocol.
    pub protocol: Protocol,
    /// The node's port.
    pub port: u16,
    /// The container's port.
    pub target: u16,
}

/// The result of an IPAM plugin, as far as it is used.
#[derive(Clone, Debug, PartialEq)]
pub struct IpamResult {
    /// Addresses, one of each family at most.
    pub addresses: Vec<IpAddr>,
    /// `dns`, unchanged.
    pub dns: Option<Value>,
}

/// A validated configuration.
#[derive(Debug)]
pub(super) struct NetConf {
    pub(super) version: Version,
    pub(super) name: String,
    pub(super) kind: Option<InterfaceKind>,
    pub(super) ipam: Ipam,
    pub(super) dns: Option<Value>,
    pub(super) runtime: Runtime,
    pub(super) previous: Option<Value>,
    valid: Option<Vec<WrittenKey>>,
    valid_older: Option<Vec<WrittenKey>>,
}

/// The source of addresses.
#[derive(Debug, Default)]
pub(super) struct Ipam {
    /// Another plugin.
    pub(super) delegate: Option<String>,
    /// Ranges. One address is allocated from each set.
    pub(super) ranges: Option<Vec<RangeSet>>,
}

/// What the runtime adds for a single container (`runtimeConfig`).
#[derive(Debug, Default)]
pub(super) struct Runtime {
    pub(super) mac: Option<Mac>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ranges: Option<Vec<RangeSet>>,
    pub(super) ports: Vec<PortMapping>,
    pub(super) dns: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    cni_version: Option<String>,
    name: Option<String>,
    port: Option<String>,
    ipam: Option<WrittenIpam>,
    dns: Option<Dns>,
    runtime_config: Option<WrittenRuntime>,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<WrittenKey>>,
    #[serde(rename = "cni.dev/attachments")]
    valid_older: Option<Vec<WrittenKey>>,
}

#[derive(Deserialize)]
struct WrittenIpam {
    r#type: Option<String>,
    /// For another plugin it may have any form.
    ranges: Option<Value>,
    #[serde(flatten)]
    others: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenRange {
    subnet: Option<String>,
    range_start: Option<String>,
    range_end: Option<String>,
    gateway: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenRuntime {
    mac: Option<String>,
    ips: Option<Vec<String>>,
    ip_ranges: Option<Vec<Vec<WrittenRange>>>,
    port_mappings: Option<Vec<WrittenPort>>,
    dns: Option<RuntimeDns>,
    bandwidth: Option<Value>,
    #[serde(rename = "infinibandGUID")]
    infiniband: Option<Value>,
    #[serde(rename = "deviceID")]
    device: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenPort {
    host_port: Option<i64>,
    container_port: Option<i64>,
    protocol: Option<String>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct WrittenKey {
    #[serde(rename = "containerID")]
    container: Option<String>,
    ifname: Option<String>,
}

/// `dns` of a configuration or of a result.
#[derive(Deserialize, serde::Serialize, Default, PartialEq)]
struct Dns {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    nameservers: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    domain: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    search: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    options: Vec<String>,
}

/// `dns` in the runtime's form (CONVENTIONS.md).
#[derive(Deserialize)]
struct RuntimeDns {
    servers: Option<Vec<String>>,
    searches: Option<Vec<String>>,
    options: Option<Vec<String>>,
}

impl NetConf {
    /// Reads a configuration as far as DEL needs it. Whatever happened to the configuration since
    /// ADD, the container must be detached.
    pub(super) fn read_for_del(text: &str) -> Result<Self, CniError> {
        match Self::read(text) {
            Err(error)
                if matches!(error.code, CniError::CONFIGURATION | CniError::UNSUPPORTED_FIELD) =>
            {
                Self::read(r#"{"cniVersion":"1.1.0","name":"unknown"}"#)
            }
            result => result,
        }
    }

    /// Reads a configuration.
    pub(super) fn read(text: &str) -> Result<Self, CniError> {
        let value: Value = serde_json::from_str(text).map_err(|error| {
            CniError::new(CniError::DECODE, format!("network configuration: not JSON: {error}"))
        })?;
        if !value.is_object() {
            let message = "network configuration: not a JSON object";
            return Err(CniError::new(CniError::DECODE, message));
        }
        let written: Written = decode(&value)?;
        let version = match written.cni_version.as_deref() {
            Some(text) => text.parse(),
            None => Err("is missing, which means 0.1.0; that is not supported".to_owned()),
        };
        let version: Version = version.map_err(|reason: String| {
            let message = format!("network configuration: cniVersion: {reason}");
            CniError::new(CniError::VERSION, message)
        })?;
        let name = written.name.unwrap_or_default();
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        if !name.bytes().all(is_name)
            || !name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            || name.len() > MAX_NETWORK
        {
            let reason = format!("{name:?} is not letters, digits, '_', '.' and '-'");
            return Err(CniError::field("name", reason));
        }
        let kind = match written.port.as_deref() {
            None => None,
            Some("tap") => Some(InterfaceKind::Tap),
            Some("veth") => Some(InterfaceKind::Veth),
            Some(other) => {
                let reason = format!("{other:?} is neither \"tap\" nor \"veth\"");
                return Err(CniError::field("port", reason));
            }
        };
        let to_value = |dns: Dns| serde_json::to_value(dns).ok();
        Ok(Self {
            version,
            name,
            kind,
            ipam: written.ipam.map(Ipam::read).transpose()?.unwrap_or_default(),
            dns: written.dns.filter(|dns| *dns != Dns::default()).and_then(to_value),
            runtime: written.runtime_config.map(Runtime::read).transpose()?.unwrap_or_default(),
            previous: written.prev_result.filter(|previous| !previous.is_null()),
            valid: written.valid,
            valid_older: written.valid_older,
        })
    }

    /// The attachments that GC must keep.
    pub(super) fn valid_attachments(&self) -> Result<Vec<Key>, CniError> {
        const FIELD: &str = "cni.dev/valid-attachments";
        let Some(written) = self.valid.as_ref().or(self.valid_older.as_ref()) else {
            // Not treated as an empty list, which would detach everything.
            return Err(CniError::field(FIELD, "is missing"));
        };
        let key = |(at, key): (usize, &WrittenKey)| {
            let container = key.container.clone().unwrap_or_default();
            let interface = key.ifname.clone().unwrap_or_default();
            let field = |name| format!("{FIELD}[{at}].{name}");
            check_container(&container).map_err(|e| CniError::field(field("containerID"), e))?;
            check_interface(&interface).map_err(|e| CniError::field(field("ifname"), e))?;
            Ok(Key { container, interface })
        };
        written.iter().enumerate().map(key).collect()
    }
}

impl Ipam {
    fn read(written: WrittenIpam) -> Result<Self, CniError> {
        match written.r#type.as_deref() {
            None | Some("" | "podswitch" | "podswitch-cni") => {}
            Some(plugin) if plugin.contains('/') || plugin.starts_with('.') => {
                let reason = format!("{plugin:?} is not a plugin name");
                return Err(CniError::field("ipam.type", reason));
            }
            Some(plugin) => return Ok(Self { delegate: Some(plugin.to_owned()), ranges: None }),
        }
        if let Some((key, value)) = written.others.iter().next() {
            return Err(unsupported(&format!("ipam.{key}"), value));
        }
        let written = written.ranges.filter(|ranges| !ranges.is_null());
        let written = written.map(|value| {
            serde_path_to_error::deserialize(&value).map_err(|error| {
                CniError::field(format!("ipam.ranges{}", suffix(error.path())), error.inner())
            })
        });
        Ok(Self { delegate: None, ranges: ranges("ipam.ranges", written.transpose()?)? })
    }
}

/// A path relative to a list, as it follows the list's name.
fn suffix(path: &serde_path_to_error::Path) -> String {
    match path.to_string() {
        root if root == "." => String::new(),
        path => path,
    }
}

impl Runtime {
    fn read(written: WrittenRuntime) -> Result<Self, CniError> {
        let refused = [
            ("bandwidth", &written.bandwidth),
            ("infinibandGUID", &written.infiniband),
            ("deviceID", &written.device),
        ];
        for (name, value) in refused {
            if let Some(value) = value.as_ref().filter(|value| !value.is_null()) {
                return Err(unsupported(&format!("runtimeConfig.{name}"), value));
            }
        }
        let mac = written.mac.filter(|text| !text.is_empty());
        let mac = mac.map(|text| mac_of(&text)).transpose();
        let mac = mac.map_err(|reason| CniError::field("runtimeConfig.mac", reason))?;
        let mut addresses = Vec::new();
        for (at, text) in written.ips.iter().flatten().enumerate() {
            let address = address(text)
                .map_err(|reason| CniError::field(format!("runtimeConfig.ips[{at}]"), reason))?;
            addresses.push(address);
        }
        let mut ports = Vec::new();
        for (at, written) in written.port_mappings.iter().flatten().enumerate() {
            ports.extend(port(at, written)?);
        }
        let dns = written.dns.and_then(|dns| {
            let dns = Dns {
                nameservers: dns.servers.unwrap_or_default(),
                search: dns.searches.unwrap_or_default(),
                options: dns.options.unwrap_or_default(),
                ..Dns::default()
            };
            (dns != Dns::default()).then(|| serde_json::to_value(dns).ok()).flatten()
        });
        let ranges = ranges("runtimeConfig.ipRanges", written.ip_ranges)?;
        Ok(Self { mac, addresses, ranges, ports, dns })
    }
}

fn unsupported(field: &str, value: &Value) -> CniError {
    let message = format!("network configuration: {field}: {value} is not supported");
    CniError::new(CniError::UNSUPPORTED_FIELD, message)
}

/// Decodes a configuration. An error contains the path of the field with the wrong type.
fn decode<T: DeserializeOwned>(value: &Value) -> Result<T, CniError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        CniError::field(path, error.inner())
    })
}

fn port(at: usize, written: &WrittenPort) -> Result<Option<PortMapping>, CniError> {
    let field = |name| format!("runtimeConfig.portMappings[{at}].{name}");
    let number = |name, value: Option<i64>| {
        let value = value.unwrap_or_default();
        u16::try_from(value)
            .map_err(|_| CniError::field(field(name), format!("{value} is not from 0 to 65535")))
    };
    let (port, target) =
        (number("hostPort", written.host_port)?, number("containerPort", written.container_port)?);
    if port == 0 {
        // As in the portmap plugin, a host port of 0 is not opened.
        return Ok(None);
    }
    if target == 0 {
        return Err(CniError::field(field("containerPort"), "is missing or 0"));
    }
    let protocol = match written.protocol.as_deref().unwrap_or_default() {
        text if text.is_empty() || text.eq_ignore_ascii_case("tcp") => Protocol::Tcp,
        text if text.eq_ignore_ascii_case("udp") => Protocol::Udp,
        text if text.eq_ignore_ascii_case("sctp") => Protocol::Sctp,
        other => {
            let reason = format!("{other:?} is neither tcp, udp nor sctp");
            return Err(CniError::field(field("protocol"), reason));
        }
    };
    let address = match written.host_ip.as_deref().unwrap_or_default() {
        "" => None,
        text => {
            let parsed = text.parse::<IpAddr>();
            Some(parsed.map_err(|_| {
                CniError::field(field("hostIP"), format!("{text:?} is not an IP address"))
            })?)
        }
    };
    Ok(Some(PortMapping { address, protocol, port, target }))
}

fn ranges(
    field: &str,
    written: Option<Vec<Vec<WrittenRange>>>,
) -> Result<Option<Vec<RangeSet>>, CniError> {
    let Some(written) = written.filter(|sets| !sets.is_empty()) else { return Ok(None) };
    let mut sets = Vec::new();
    for (at, set) in written.iter().enumerate() {
        let mut ranges = RangeSet::new();
        for (number, written) in set.iter().enumerate() {
            let path = format!("{field}[{at}][{number}]");
            let refuse =
                |name: &str, reason: String| CniError::field(format!("{path}.{name}"), reason);
            let subnet = written.subnet.as_deref().unwrap_or_default();
            let subnet: Cidr = subnet
                .parse()
                .map_err(|_| refuse("subnet", format!("{subnet:?} is not a range of addresses")))?;
            let bound = |name, text: &Option<String>| {
                let text = text.as_deref().filter(|text| !text.is_empty());
                let parsed = text.map(str::parse::<IpAddr>).transpose();
                parsed.map_err(|_| refuse(name, format!("{text:?} is not an IP address")))
            };
            let first = bound("rangeStart", &written.range_start)?;
            let last = bound("rangeEnd", &written.range_end)?;
            let gateway = bound("gateway", &written.gateway)?;
            let range = range(subnet, first, last, gateway)
                .map_err(|reason| CniError::field(&path, reason))?;
            ranges.push(range);
        }
        if ranges.is_empty() {
            return Err(CniError::field(format!("{field}[{at}]"), "is empty"));
        }
        if ranges.iter().any(|range| range.is_ipv6() != ranges[0].is_ipv6()) {
            let reason = "has ranges of both families; a set must have one";
            return Err(CniError::field(format!("{field}[{at}]"), reason));
        }
        sets.push(ranges);
    }
    let ipv6 = sets.iter().filter(|set| set[0].is_ipv6()).count();
    if ipv6 > 1 || sets.len() - ipv6 > 1 {
        return Err(CniError::field(field, "has more than one set of a family"));
    }
    Ok(Some(sets))
}

/// Reads the result of an IPAM plugin.
pub(super) fn ipam_result(result: &Value) -> Result<IpamResult, CniError> {
    #[derive(Deserialize)]
    struct Written {
        ips: Option<Vec<WrittenIp>>,
        dns: Option<Dns>,
    }
    #[derive(Deserialize)]
    struct WrittenIp {
        address: Option<String>,
    }
    const FIELD: &str = "ipam: the plugin's result";
    let written: Written = serde_path_to_error::deserialize(result)
        .map_err(|error| CniError::field(format!("{FIELD}: {}", error.path()), error.inner()))?;
    let mut addresses = Vec::new();
    for (at, ip) in written.ips.iter().flatten().enumerate() {
        let text = ip.address.as_deref().unwrap_or_default();
        let address = address(text)
            .map_err(|reason| CniError::field(format!("{FIELD}: ips[{at}].address"), reason))?;
        addresses.push(address);
    }
    if addresses.is_empty() {
        return Err(CniError::field(format!("{FIELD}: ips"), "is empty"));
    }
    let dns = written.dns.filter(|dns| *dns != Dns::default());
    Ok(IpamResult { addresses, dns: dns.and_then(|dns| serde_json::to_value(dns).ok()) })
}

/// A container's address, with or without a prefix length.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let parsed: IpAddr =
        address.trim().parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    let longest = if parsed.is_ipv4() { 32 } else { 128 };
    let is_prefix = |text: &str| text.parse::<u8>().is_ok_and(|prefix| prefix <= longest);
    if !prefix.is_none_or(is_prefix) {
        return Err(format!("{text:?} has no prefix length from 0 to {longest}"));
    }
    let is_mapped = matches!(parsed, IpAddr::V6(a) if a.to_ipv4_mapped().is_some());
    if parsed.is_unspecified() || parsed.is_multicast() || parsed.is_loopback() || is_mapped {
        return Err(format!("{parsed} is not a valid pod address"));
    }
    Ok(parsed)
}

/// The MAC address of one interface. Errors begin with `name`.
pub(super) fn mac(text: &str, name: &str) -> Result<Mac, String> {
    mac_of(text).map_err(|reason| format!("{name}: {reason}"))
}

fn mac_of(text: &str) -> Result<Mac, String> {
    let mac: Mac = text.parse().map_err(|_| format!("{text:?} is not a MAC address"))?;
    match mac.is_unicast() {
        true => Ok(mac),
        false => Err(format!("{mac} is not a unicast address")),
    }
}

/// A range in the form of `ipRanges` and `ipam.ranges`.
fn range(
    subnet: Cidr,
    first: Option<IpAddr>,
    last: Option<IpAddr>,
    gateway: Option<IpAddr>,
) -> Result<AddressRange, String> {
    let mut range = AddressRange::of(subnet);
    for (name, bound) in [("rangeStart", first), ("rangeEnd", last), ("gateway", gateway)] {
        if let Some(address) = bound.filter(|address| !subnet.contains(*address)) {
            return Err(format!("{name}: {address} is not in {subnet}"));
        }
    }
    if !range.limit(first, last) {
        return Err("rangeEnd: is before rangeStart".to_owned());
    }
    range.reserve(gateway);
    Ok(range)
}
