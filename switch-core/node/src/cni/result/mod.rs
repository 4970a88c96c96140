//! The result of ADD (CNI SPEC, "ADD Success"), in the format of each version.

use std::net::IpAddr;

use podswitch_core::config::Gateway;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::CniError;
use super::version::Version;

/// The attached interface.
pub(super) struct Attached<'a> {
    pub(super) interface: &'a str,
    pub(super) mac: &'a str,
    pub(super) mtu: u16,
    pub(super) netns: &'a str,
    pub(super) addresses: &'a [IpAddr],
    pub(super) dns: Option<&'a Value>,
}

/// The result of ADD: the result of the preceding plugin, with ours appended.
pub(super) fn added(
    version: Version,
    previous: Option<&Value>,
    attached: &Attached<'_>,
) -> Result<Value, CniError> {
    let mut result = match previous {
        Some(Value::Object(previous)) => previous.clone(),
        Some(_) => return Err(CniError::field("prevResult", "is not an object")),
        None => Map::new(),
    };
    result.insert("cniVersion".to_owned(), json!(version.as_str()));
    let mut interface = json!({
        "name": attached.interface,
        "mac": attached.mac,
        "sandbox": attached.netns,
    });
    if version >= Version::V1_1_0 {
        interface["mtu"] = json!(attached.mtu);
    }
    let interfaces = list(&mut result, "interfaces")?;
    interfaces.push(interface);
    let index = interfaces.len() - 1;
    let gateway = Gateway::default();
    let gateway = |address: &IpAddr| -> IpAddr {
        if address.is_ipv4() { gateway.ipv4.into() } else { gateway.ipv6.into() }
    };
    for address in attached.addresses {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let mut ip = json!({
            "address": format!("{address}/{prefix}"),
            "gateway": gateway(address).to_string(),
            "interface": index,
        });
        if version < Version::V1_0_0 {
            ip["version"] = json!(if address.is_ipv4() { "4" } else { "6" });
        }
        list(&mut result, "ips")?.push(ip);
        let all = if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        list(&mut result, "routes")?.push(json!({"dst": all, "gw": gateway(address).to_string()}));
    }
    let has_dns =
        result.get("dns").is_some_and(|dns| dns.as_object().is_some_and(|d| !d.is_empty()));
    if !has_dns {
        result.insert("dns".to_owned(), attached.dns.cloned().unwrap_or_else(|| json!({})));
    }
    Ok(Value::Object(result))
}

fn list<'a>(
    result: &'a mut Map<String, Value>,
    name: &str,
) -> Result<&'a mut Vec<Value>, CniError> {
    let value = result.entry(name).or_insert_with(|| json!([]));
    if value.is_null() {
        *value = json!([]);
    }
    match value {
        Value::Array(list) => Ok(list),
        _ => Err(CniError::field(format!("prevResult.{name}"), "is not a list")),
    }
}

/// What CHECK expects, from `prevResult`.
#[derive(Debug, PartialEq)]
pub(super) struct Expected {
    /// MAC address of the interface, if the result has one.
    pub(super) mac: Option<String>,
    /// Addresses of the interface, without prefix length.
    pub(super) addresses: Vec<IpAddr>,
}

/// Reads from `prevResult` what it contains about the interface `name` in the namespace `netns`.
pub(super) fn expected(previous: &Value, name: &str, netns: &str) -> Result<Expected, CniError> {
    #[derive(Deserialize)]
    struct Written {
        interfaces: Option<Vec<Interface>>,
        ips: Option<Vec<Ip>>,
    }
    #[derive(Deserialize)]
    struct Interface {
        name: Option<String>,
        mac: Option<String>,
        sandbox: Option<String>,
    }
    #[derive(Deserialize)]
    struct Ip {
        address: Option<String>,
        interface: Option<usize>,
    }
    let written: Written = serde_path_to_error::deserialize(previous)
        .map_err(|error| CniError::field(format!("prevResult.{}", error.path()), error.inner()))?;
    let interfaces = written.interfaces.unwrap_or_default();
    let is_ours = |interface: &Interface| {
        interface.name.as_deref() == Some(name) && interface.sandbox.as_deref() == Some(netns)
    };
    let Some(index) = interfaces.iter().position(is_ours) else {
        let reason = format!("has no interface {name} in {netns}");
        return Err(CniError::field("prevResult.interfaces", reason));
    };
    let mut addresses = Vec::new();
    for (at, ip) in written.ips.iter().flatten().enumerate() {
        if ip.interface.is_some_and(|interface| interface != index) {
            continue;
        }
        let text = ip.address.as_deref().unwrap_or_default();
        let address = super::config::address(text)
            .map_err(|reason| CniError::field(format!("prevResult.ips[{at}].address"), reason))?;
        addresses.push(address);
    }
    let mac = interfaces[index].mac.clone().filter(|mac| !mac.is_empty());
    Ok(Expected { mac, addresses })
}

#[cfg(test)]
mod tests;
