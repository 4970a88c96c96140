//! A runtime's request: environment and network configuration, validated.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hashbrown::HashMap;
use podswitch_wire::addr::Mac;
use serde_json::Value;

use super::config::{self, IpamResult, NetConf, PortMapping};
use super::error::CniError;
use super::ipam::RangeSet;
use super::key::{Key, check_container, check_interface};
use super::version::Version;
use crate::attachment::InterfaceKind;
use crate::pod_name::PodName;

/// A verb with its parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Which verb.
    pub verb: Verb,
    /// The version of the answer's format.
    pub version: Version,
    /// `name` of the network.
    pub network: String,
    /// Result of the preceding plugin, unchanged.
    pub previous: Option<Value>,
}

/// A verb.
#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    /// Attach a container.
    Add(Box<Add>),
    /// Detach it.
    Del(Key),
    /// Compare with what ADD returned.
    Check {
        /// Which attachment.
        key: Key,
        /// `CNI_NETNS`.
        netns: String,
    },
    /// Detach all but these.
    Gc(Vec<Key>),
}

/// An attachment to create.
#[derive(Clone, Debug, PartialEq)]
pub struct Add {
    /// The key by which it will be released.
    pub key: Key,
    /// `CNI_NETNS`: path of the container's network namespace.
    pub netns: String,
    /// The pod.
    pub pod: PodName,
    /// Whether the runtime named the pod. Otherwise its name is derived from the key.
    pub is_pod: bool,
    /// `K8S_POD_UID`.
    pub uid: Option<String>,
    /// Kind of device; `None`: the best available one.
    pub kind: Option<InterfaceKind>,
    /// The requested MAC address.
    pub mac: Option<Mac>,
    /// The requested addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Ranges to allocate from; `None`: the node's ranges.
    pub ranges: Option<Vec<RangeSet>>,
    /// Ports of the node to forward to the container.
    pub ports: Vec<PortMapping>,
    /// `dns` of the answer.
    pub dns: Option<Value>,
    /// The result of another IPAM plugin.
    pub ipam: Option<IpamResult>,
}

impl Request {
    /// Reads a request. `environment`: the variables `CNI_*`; `config`: the plugin's standard
    /// input; `ipam`: on ADD, the result of the IPAM plugin that the configuration names.
    ///
    /// # Errors
    /// An error with a code of the specification. The message names the field or variable, and the
    /// reason.
    pub fn read(
        environment: &BTreeMap<String, String>,
        config: &str,
        ipam: Option<&Value>,
    ) -> Result<Self, CniError> {
        let variables = Variables(environment);
        let command = variables.required(&["CNI_COMMAND"])?[0];
        let config = match command {
            "DEL" => NetConf::read_for_del(config)?,
            _ => NetConf::read(config)?,
        };
        let version = config.version;
        let unknown = |verb| {
            let reason = format!("version {version} has no {verb}");
            CniError::new(CniError::VERSION, format!("network configuration: cniVersion: {reason}"))
        };
        let verb = match command {
            "ADD" => Verb::Add(Box::new(Add::read(&variables, &config, ipam)?)),
            "DEL" => {
                variables.required(&["CNI_CONTAINERID", "CNI_IFNAME"])?;
                Verb::Del(variables.key()?)
            }
            "CHECK" if version < Version::V0_4_0 => return Err(unknown("CHECK")),
            "CHECK" => {
                let needed = variables.required(&["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])?;
                let netns = needed[1].to_owned();
                if config.previous.is_none() {
                    return Err(CniError::field("prevResult", "is missing: CHECK needs it"));
                }
                Verb::Check { key: variables.key()?, netns }
            }
            "GC" if version < Version::V1_1_0 => return Err(unknown("GC")),
            "GC" => {
                variables.required(&["CNI_PATH"])?;
                Verb::Gc(config.valid_attachments()?)
            }
            other => {
                return Err(CniError::variable("CNI_COMMAND", format!("{other:?} is unknown")));
            }
        };
        Ok(Self { verb, version, network: config.name, previous: config.previous })
    }

    /// The version of the answer's format if the request could not be read: that of the
    /// configuration, if it is supported.
    pub fn version_of(config: &str) -> Version {
        let value: Option<Value> = serde_json::from_str(config).ok();
        let version =
            value.as_ref().and_then(|value| value.get("cniVersion")?.as_str()?.parse().ok());
        version.unwrap_or(Version::V1_1_0)
    }
}

impl Add {
    fn read(
        variables: &Variables<'_>,
        config: &NetConf,
        ipam: Option<&Value>,
    ) -> Result<Self, CniError> {
        let needed = variables.required(&["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])?;
        let netns = needed[1].to_owned();
        if !netns.starts_with('/') {
            return Err(CniError::variable(
                "CNI_NETNS",
                format!("{netns:?} is not an absolute path"),
            ));
        }
        let key = variables.key()?;
        let arguments = Arguments::read(variables.get("CNI_ARGS"))?;
        let (pod, is_pod) = match arguments.pod()? {
            Some(pod) => (pod, true),
            None => (key.stand_in(), false),
        };
        let runtime = &config.runtime;
        let mut addresses = runtime.addresses.clone();
        if addresses.is_empty() {
            addresses = arguments.addresses()?;
        }
        let one_per_family = |field: &str, addresses: &[IpAddr]| {
            let ipv6 = addresses.iter().filter(|address| address.is_ipv6()).count();
            match ipv6 > 1 || addresses.len() - ipv6 > 1 {
                true => Err(CniError::field(field, "has more than one address of a family")),
                false => Ok(()),
            }
        };
        one_per_family("runtimeConfig.ips", &addresses)?;
        let ipam = match (&config.ipam.delegate, ipam) {
            (Some(_), Some(result)) => {
                let result = config::ipam_result(result)?;
                one_per_family("ipam: the plugin's result: ips", &result.addresses)?;
                Some(result)
            }
            (Some(plugin), None) => {
                let reason = format!("there is no result of {plugin}");
                return Err(CniError::field("ipam.type", reason));
            }
            (None, _) => None,
        };
        Ok(Self {
            key,
            netns,
            pod,
            is_pod,
            uid: arguments.get("K8S_POD_UID").map(str::to_owned),
            kind: config.kind,
            mac: runtime.mac.or(arguments.mac()?),
            addresses,
            ranges: runtime.ranges.clone().or_else(|| config.ipam.ranges.clone()),
            ports: runtime.ports.clone(),
            dns: runtime.dns.clone().or_else(|| config.dns.clone()),
            ipam,
        })
    }
}

/// The variables `CNI_*`.
struct Variables<'a>(&'a BTreeMap<String, String>);

impl<'a> Variables<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The values of required variables. The error names all that are missing.
    fn required(&self, names: &[&str]) -> Result<Vec<&'a str>, CniError> {
        let missing: Vec<&str> =
            names.iter().copied().filter(|name| self.get(name).is_none()).collect();
        if missing.is_empty() {
            return Ok(names.iter().filter_map(|name| self.get(name)).collect());
        }
        let message = format!("required environment variables are missing: {}", missing.join(", "));
        Err(CniError::new(CniError::ENVIRONMENT, message))
    }

    fn key(&self) -> Result<Key, CniError> {
        let container = self.get("CNI_CONTAINERID").unwrap_or_default();
        let interface = self.get("CNI_IFNAME").unwrap_or_default();
        check_container(container).map_err(|e| CniError::variable("CNI_CONTAINERID", e))?;
        check_interface(interface).map_err(|e| CniError::variable("CNI_IFNAME", e))?;
        Ok(Key { container: container.to_owned(), interface: interface.to_owned() })
    }
}

/// `CNI_ARGS`: pairs `KEY=VALUE`, separated by `;`. Unknown keys are ignored.
struct Arguments<'a>(HashMap<&'a str, &'a str>);

impl<'a> Arguments<'a> {
    fn read(text: Option<&'a str>) -> Result<Self, CniError> {
        let mut pairs = HashMap::new();
        for pair in text.unwrap_or_default().split(';').filter(|pair| !pair.trim().is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(CniError::variable("CNI_ARGS", format!("{pair:?} is not KEY=VALUE")));
            };
            pairs.insert(key.trim(), value.trim());
        }
        Ok(Self(pairs))
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.0.get(key).copied().filter(|value| !value.is_empty())
    }

    fn pod(&self) -> Result<Option<PodName>, CniError> {
        match (self.get("K8S_POD_NAMESPACE"), self.get("K8S_POD_NAME")) {
            (Some(namespace), Some(name)) => PodName::new(namespace, name)
                .map(Some)
                .map_err(|e| CniError::variable("CNI_ARGS", format!("K8S_POD_NAME: {e}"))),
            (None, None) => Ok(None),
            (None, Some(_)) => Err(CniError::variable("CNI_ARGS", "K8S_POD_NAMESPACE is missing")),
            (Some(_), None) => Err(CniError::variable("CNI_ARGS", "K8S_POD_NAME is missing")),
        }
    }

    fn mac(&self) -> Result<Option<Mac>, CniError> {
        let mac = self.get("MAC").map(|text| config::mac(text, "MAC"));
        mac.transpose().map_err(|e| CniError::variable("CNI_ARGS", e))
    }

    fn addresses(&self) -> Result<Vec<IpAddr>, CniError> {
        let texts = self.get("IP").unwrap_or_default().split(',').filter(|text| !text.is_empty());
        texts
            .map(config::address)
            .collect::<Result<_, _>>()
            .map_err(|e| CniError::variable("CNI_ARGS", format!("IP: {e}")))
    }
}

#[cfg(test)]
mod tests;
