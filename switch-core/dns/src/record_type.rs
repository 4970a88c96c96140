//! Types of records (RFC 1035, RFC 3596, RFC 2782), by number and name.

/// IPv4 address.
pub const A: u16 = 1;
/// Name server.
pub const NS: u16 = 2;
/// Alias.
pub const CNAME: u16 = 5;
/// Start of authority.
pub const SOA: u16 = 6;
/// Name of an address.
pub const PTR: u16 = 12;
/// Text.
pub const TXT: u16 = 16;
/// IPv6 address.
pub const AAAA: u16 = 28;
/// Host and port of a service.
pub const SRV: u16 = 33;
/// EDNS (RFC 6891); only in the additional section.
pub const OPT: u16 = 41;
/// Incremental zone transfer.
pub const IXFR: u16 = 251;
/// Zone transfer.
pub const AXFR: u16 = 252;
/// Any type (RFC 8482).
pub const ANY: u16 = 255;

/// Types with a name.
const TYPES: [(u16, &str); 14] = [
    (A, "A"),
    (NS, "NS"),
    (CNAME, "CNAME"),
    (SOA, "SOA"),
    (PTR, "PTR"),
    (13, "HINFO"),
    (15, "MX"),
    (TXT, "TXT"),
    (AAAA, "AAAA"),
    (SRV, "SRV"),
    (65, "HTTPS"),
    (IXFR, "IXFR"),
    (AXFR, "AXFR"),
    (ANY, "ANY"),
];

/// The name of a type; `TYPE123` if it has none (RFC 3597 section 5).
pub fn type_name(kind: u16) -> String {
    let known = TYPES.iter().find(|(number, _)| *number == kind);
    known.map_or_else(|| format!("TYPE{kind}"), |(_, name)| (*name).to_owned())
}

/// The type of that name, in any case.
pub fn type_number(name: &str) -> Option<u16> {
    let known = TYPES.iter().find(|(_, known)| known.eq_ignore_ascii_case(name));
    known.map(|(number, _)| *number).or_else(|| {
        let number = name.get(..4).filter(|start| start.eq_ignore_ascii_case("TYPE"));
        number.and_then(|_| name[4..].parse().ok())
    })
}
