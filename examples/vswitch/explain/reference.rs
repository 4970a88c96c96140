//! References: how the ends of a connection are named on the command line.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use podswitch_policy::rule::Protocol;
use podswitch_policy::verdict::Traffic;

/// One end as named, not yet looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reference {
    /// `pod/NAMESPACE/NAME`.
    Pod(String, String),
    /// `svc/NAMESPACE/NAME`.
    Service(String, String),
    /// `NAMESPACE/NAME`: a pod, otherwise a Service.
    PodOrService(String, String),
    /// `node/NAME`.
    Node(String),
    /// An address.
    Address(IpAddr),
}

impl Reference {
    /// Reads a reference without a port.
    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(format!("{text:?}: a part of the name is empty"));
        }
        let own = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        match *parts {
            ["node", name] => Ok(Self::Node(name.to_owned())),
            [namespace, name] => {
                let (namespace, name) = own(namespace, name);
                Ok(Self::PodOrService(namespace, name))
            }
            ["pod", namespace, name] => {
                let (namespace, name) = own(namespace, name);
                Ok(Self::Pod(namespace, name))
            }
            ["svc", namespace, name] => {
                let (namespace, name) = own(namespace, name);
                Ok(Self::Service(namespace, name))
            }
            _ => Err(format!(
                "{text:?} is none of pod/NAMESPACE/NAME, svc/NAMESPACE/NAME, node/NAME, \
                 NAMESPACE/NAME, an address"
            )),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(namespace, name) => write!(f, "pod/{namespace}/{name}"),
            Self::Service(namespace, name) => write!(f, "svc/{namespace}/{name}"),
            Self::PodOrService(namespace, name) => write!(f, "{namespace}/{name}"),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// Parses `--from`.
pub(super) fn parse_source(text: &str) -> Result<Reference, String> {
    let target = Target::parse(text)?;
    match target.wanted {
        Wanted::Echo => Ok(target.reference),
        Wanted::Port(..) => Err("the port of a source is set with --sport".to_owned()),
    }
}

/// `--to`: an end, and the port or echo request at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) reference: Reference,
    pub(super) wanted: Wanted,
}

impl Target {
    /// Parses the option's value.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (name, wanted) = Self::split(text)?;
        let reference = match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => inner
                .parse::<Ipv6Addr>()
                .map(|address| Reference::Address(address.into()))
                .map_err(|_| format!("{inner:?} is not an IPv6 address"))?,
            None => Reference::parse(name)?,
        };
        let wanted = wanted.map_or(Ok(Wanted::Echo), Wanted::port)?;
        Ok(Self { reference, wanted })
    }

    /// Separates the name from the port; an IPv6 address with a port needs brackets.
    fn split(text: &str) -> Result<(&str, Option<&str>), String> {
        if text.parse::<Ipv6Addr>().is_ok() {
            return Ok((text, None));
        }
        if text.starts_with('[') {
            let end = text.find(']').ok_or_else(|| format!("{text:?}: a ']' is missing"))? + 1;
            let (name, rest) = text.split_at(end);
            return match rest.strip_prefix(':') {
                Some(port) => Ok((name, Some(port))),
                None if rest.is_empty() => Ok((name, None)),
                None => Err(format!("{text:?}: after ']' comes :PORT or nothing")),
            };
        }
        match text.split_once(':') {
            Some((_, rest)) if rest.contains(':') => {
                Err(format!("{text:?}: with a port an IPv6 address stands in brackets"))
            }
            Some((name, port)) => Ok((name, Some(port))),
            None => Ok((text, None)),
        }
    }
}

/// What is wanted of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// An answer to an ICMP echo request.
    Echo,
    /// A connection to a port.
    Port(u16, Protocol),
}

impl Wanted {
    /// Parses `PORT`, `PORT/PROTO` or `ICMP`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let echo = ["icmp", "icmpv6", "echo"].iter().any(|name| text.eq_ignore_ascii_case(name));
        if echo { Ok(Self::Echo) } else { Self::port(text) }
    }

    fn port(text: &str) -> Result<Self, String> {
        let (port, name) = text.split_once('/').unwrap_or((text, "TCP"));
        match port.parse() {
            Ok(number) if number > 0 && !port.starts_with('+') => {
                Ok(Self::Port(number, protocol(name)?))
            }
            _ => Err(format!("{port:?} is no port, 1 to 65535")),
        }
    }

    /// As policy traffic.
    pub(super) fn traffic(self, ipv6: bool) -> Traffic {
        match self {
            Self::Echo => Traffic::echo(ipv6),
            Self::Port(port, protocol) => Traffic::to_port(protocol, port),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo => f.write_str("ICMP"),
            Self::Port(port, protocol) => write!(f, "{port}/{protocol}"),
        }
    }
}

/// A protocol by its name, in any case.
fn protocol(text: &str) -> Result<Protocol, String> {
    let known = Protocol::ALL.into_iter().find(|p| p.name().eq_ignore_ascii_case(text));
    known.ok_or_else(|| format!("{text:?} is not one of TCP, UDP, SCTP"))
}
