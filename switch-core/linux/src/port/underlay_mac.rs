//! MAC addresses derived from underlay IP addresses.

use std::net::IpAddr;

use podswitch_wire::addr::Mac;

/// The MAC address that represents an underlay address in frames of this port: `0a:58` and the
/// address's last four bytes.
pub fn underlay_mac(address: IpAddr) -> Mac {
    let last = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            [a, b, c, d]
        }
    };
    Mac([0x0a, 0x58, last[0], last[1], last[2], last[3]])
}
