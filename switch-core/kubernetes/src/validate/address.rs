//! IP addresses and ranges. Strict where leniency would be dangerous: no leading zeros (other
//! parsers read them as octal: CVE-2021-29923), no IPv4-mapped IPv6 (T-F7). The API server has both
//! checks behind its `StrictIPCIDRValidation` gate.

use std::net::IpAddr;

use podswitch_wire::cidr::{Cidr, CidrParseError};

use crate::report::quote;

/// An address.
pub(crate) fn ip(text: &str) -> Result<IpAddr, String> {
    match text.parse::<IpAddr>() {
        Ok(address) if is_mapped(address) => {
            Err(format!("{} is an IPv4 address in IPv6 form; write it as IPv4", quote(text)))
        }
        Ok(address) => Ok(address),
        Err(_) => Err(format!(
            "{} is not an IP address (such as 10.9.8.7 or 2001:db8::7, without leading zeros)",
            quote(text)
        )),
    }
}

/// A routable host address.
pub(crate) fn host_ip(text: &str) -> Result<IpAddr, String> {
    let address = ip(text)?;
    let (local, broadcast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.is_broadcast() || v4.octets()[0] == 0),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), false),
    };
    let what = if address.is_unspecified() {
        "the unspecified address"
    } else if address.is_loopback() {
        "a loopback address"
    } else if address.is_multicast() {
        "a multicast address"
    } else if local {
        "a link-local address"
    } else if broadcast {
        "not the address of a host"
    } else {
        return Ok(address);
    };
    Err(format!("{text} is {what}"))
}

/// A range, and whether bits were set beyond its prefix. As in the API server, such a range is read
/// as the one that contains the address.
pub(crate) fn cidr(text: &str) -> Result<(Cidr, bool), String> {
    let cidr: Cidr =
        text.parse().map_err(|why: CidrParseError| format!("{}: {why}", quote(text)))?;
    let written = text.split_once('/').and_then(|(address, _)| address.parse::<IpAddr>().ok());
    if written.is_some_and(is_mapped) {
        let text = quote(text);
        return Err(format!("{text} is an IPv4 range in IPv6 form; write it as IPv4"));
    }
    Ok((cidr, written != Some(cidr.address())))
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// Whether `outer` contains all of `inner`.
pub(crate) fn covers(outer: Cidr, inner: Cidr) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.address())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["10.9.8.7", "2001:db8::7", "::", "0.0.0.0", "FD00::A", "::1.2.3.4"] {
            assert_eq!(ip(good), Ok(good.parse().unwrap()), "{good}");
        }
        let bad = [
            "",
            "10.0.0",
            "010.0.0.1",
            "10.0.0.256",
            "10.0.0.1 ",
            "::ffff:10.0.0.1",
            "fe80::1%eth0",
        ];
        for bad in bad.into_iter().chain(["10.0.0.1/32", "a", "1", "::ffff:0:1", "[::1]"]) {
            assert!(ip(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_of_hosts() {
        assert!(host_ip("10.0.0.1").is_ok() && host_ip("fd00::1").is_ok());
        for bad in
            ["0.0.0.0", "0.1.2.3", "127.0.0.1", "169.254.1.1", "224.0.0.1", "255.255.255.255"]
        {
            assert!(host_ip(bad).is_err(), "{bad}");
        }
        for bad in ["::", "::1", "fe80::1", "ff02::1"] {
            assert!(host_ip(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges() {
        assert_eq!(cidr("10.0.0.0/8"), Ok(("10.0.0.0/8".parse().unwrap(), false)));
        assert_eq!(cidr("10.1.2.3/8"), Ok(("10.0.0.0/8".parse().unwrap(), true)));
        assert_eq!(cidr("::/0").map(|(c, _)| c.prefix()), Ok(0));
        let bad = ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/08", "/8", "10.0.0.0/"];
        for bad in
            bad.into_iter().chain(["::ffff:10.0.0.0/104", "fd00::/129", "10.0.0/8", "10.0.0.0/8/8"])
        {
            assert!(cidr(bad).is_err(), "{bad}");
        }
        let covers = |a, b| covers(cidr(a).unwrap().0, cidr(b).unwrap().0);
        assert!(covers("10.0.0.0/8", "10.1.0.0/16") && covers("10.0.0.0/8", "10.0.0.0/8"));
        assert!(!covers("10.1.0.0/16", "10.0.0.0/8") && !covers("10.0.0.0/8", "11.0.0.0/16"));
        assert!(!covers("0.0.0.0/0", "::/0"));
    }
}
