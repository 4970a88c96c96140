//! Domain names in wire form (RFC 1035 section 3.1), without compression.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest name in bytes, with the root's length byte (RFC 1035 section 2.3.4).
pub const MAX_NAME: usize = 255;
/// Longest label in bytes.
pub const MAX_LABEL: usize = 63;
/// Most labels of a name, the root apart.
const MAX_LABELS: usize = 127;

/// A text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// A label is empty: two dots in a row, or one at the start.
    #[error("{0:?} has an empty label")]
    EmptyLabel(String),
    /// A label is longer than 63 bytes, or is not one label.
    #[error("{0:?} is not a label of 1 to 63 bytes")]
    Label(String),
    /// Longer than 255 bytes in wire form.
    #[error("{0:?} is longer than 255 bytes")]
    Length(String),
}

/// An absolute name in lower case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<[u8]>);

impl Name {
    /// Reads a name such as `cluster.local`; a dot at the end makes no difference.
    ///
    /// # Errors
    /// A label or the whole is too long, or a label is empty.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let stripped = text.strip_suffix('.').unwrap_or(text);
        let mut wire = Vec::with_capacity(stripped.len() + 2);
        if !stripped.is_empty() {
            for label in stripped.split('.') {
                match label.len() {
                    0 => return Err(NameError::EmptyLabel(text.to_owned())),
                    1..=MAX_LABEL => push(&mut wire, label),
                    _ => return Err(NameError::Label(label.to_owned())),
                }
            }
        }
        wire.push(0);
        if wire.len() > MAX_NAME {
            return Err(NameError::Length(text.to_owned()));
        }
        Ok(Self(wire.into()))
    }

    /// The zone that holds the reverse names of a range of addresses (RFC 1035 section 3.5, RFC 3596 section 2.5). A
    /// prefix within a label is rounded down to the label.
    pub fn reverse_zone(address: IpAddr, prefix: u8) -> Self {
        let mut wire = Vec::new();
        match address {
            IpAddr::V4(address) => {
                for byte in address.octets()[..usize::from(prefix / 8).min(4)].iter().rev() {
                    push(&mut wire, &byte.to_string());
                }
                wire.extend_from_slice(IN_ADDR);
            }
            IpAddr::V6(address) => {
                let nibbles = address.octets().into_iter().flat_map(|b| [b >> 4, b & 15]);
                let nibbles: Vec<_> = nibbles.take(usize::from(prefix / 4).min(32)).collect();
                for nibble in nibbles.into_iter().rev() {
                    push(&mut wire, &format!("{nibble:x}"));
                }
                wire.extend_from_slice(IP6);
            }
        }
        Self(wire.into())
    }

    /// The name that holds an address's PTR records.
    pub fn reverse(address: IpAddr) -> Self {
        Self::reverse_zone(address, if address.is_ipv4() { 32 } else { 128 })
    }

    /// Wire form, with the root's length byte.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// Number of labels, the root apart.
    pub(crate) fn labels(&self) -> usize {
        labels(&self.0).count()
    }

    /// Appends another absolute name's labels in front. For tests and tools.
    ///
    /// # Errors
    /// The whole is too long.
    pub fn below(&self, relative: &str) -> Result<Self, NameError> {
        Self::parse(&format!("{relative}.{self}"))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(&self.0, f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A name in wire form as text (RFC 4343 section 2.1), with a dot at the end; nothing for no bytes.
pub fn display_name(wire: &[u8]) -> String {
    let mut text = String::new();
    if !wire.is_empty() {
        // A text takes everything.
        let _ = display(wire, &mut text);
    }
    text
}

/// Writes a name in wire form as text (RFC 4343 section 2.1), with a dot at the end.
pub(crate) fn display(wire: &[u8], f: &mut dyn fmt::Write) -> fmt::Result {
    let mut is_root = true;
    for label in labels(wire) {
        is_root = false;
        for &byte in label {
            match byte {
                b'.' | b'\\' => write!(f, "\\{}", byte as char)?,
                b'!'..=b'~' => f.write_char(byte as char)?,
                _ => write!(f, "\\{byte:03}")?,
            }
        }
        f.write_char('.')?;
    }
    if is_root { f.write_char('.') } else { Ok(()) }
}

/// The labels of a well-formed name, which may lack the root.
pub(crate) fn labels(mut wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (&len, rest) = wire.split_first()?;
        if len == 0 {
            return None;
        }
        let (label, rest) = rest.split_at_checked(usize::from(len))?;
        wire = rest;
        Some(label)
    })
}

/// Appends a label in lower case; it has been checked.
fn push(wire: &mut Vec<u8>, label: &str) {
    wire.push(label.len() as u8);
    wire.extend(label.bytes().map(|b| b.to_ascii_lowercase()));
}

/// Appends one label in lower case.
pub(crate) fn push_label(wire: &mut Vec<u8>, label: &str) -> Result<(), NameError> {
    if label.is_empty() || label.len() > MAX_LABEL || label.contains('.') {
        return Err(NameError::Label(label.to_owned()));
    }
    push(wire, label);
    Ok(())
}

const IN_ADDR: &[u8] = b"\x07in-addr\x04arpa\0";
const IP6: &[u8] = b"\x03ip6\x04arpa\0";

/// A name of a query: lower case, with the place of each label.
pub(crate) struct Labelled {
    bytes: [u8; MAX_NAME],
    /// With the root.
    len: usize,
    /// Where each label's length byte is.
    starts: [u8; MAX_LABELS],
    count: usize,
}

impl Labelled {
    /// Reads the name at the start of `wire`. `None`: it is not a name, or is compressed.
    pub(crate) fn read(wire: &[u8]) -> Option<Self> {
        let mut it = Self { bytes: [0; MAX_NAME], len: 0, starts: [0; MAX_LABELS], count: 0 };
        let mut at = 0;
        loop {
            let len = usize::from(*wire.get(at)?);
            if len == 0 {
                it.len = at + 1;
                return (it.len <= MAX_NAME).then_some(it);
            }
            let end = at + 1 + len;
            if len > MAX_LABEL || end >= MAX_NAME {
                return None;
            }
            let label = wire.get(at + 1..end)?;
            it.bytes[at] = len as u8;
            let lower = &mut it.bytes[at + 1..end];
            lower.copy_from_slice(label);
            lower.make_ascii_lowercase();
            it.starts[it.count] = at as u8;
            it.count += 1;
            at = end;
        }
    }

    /// Length in wire form, with the root.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Number of labels, the root apart.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Where label number `at` starts; for `count()` the root.
    pub(crate) fn start(&self, at: usize) -> usize {
        if at == self.count { self.len - 1 } else { usize::from(self.starts[at]) }
    }

    /// Labels `from..to`, each with its length byte.
    pub(crate) fn part(&self, from: usize, to: usize) -> &[u8] {
        &self.bytes[self.start(from)..self.start(to)]
    }

    /// Label number `at`, without its length byte.
    pub(crate) fn label(&self, at: usize) -> &[u8] {
        &self.part(at, at + 1)[1..]
    }

    /// Number of labels in front of `zone`, if the name is in it.
    pub(crate) fn labels_before(&self, zone: &[u8], labels: usize) -> Option<usize> {
        let front = self.count.checked_sub(labels)?;
        (&self.bytes[self.start(front)..self.len] == zone).then_some(front)
    }

    /// What it says of addresses, if it is a name of the reverse zones.
    pub(crate) fn reverse(&self) -> Option<Reverse> {
        if let Some(front) = self.labels_before(IN_ADDR, 2) {
            return Some(self.reverse_v4(front));
        }
        self.labels_before(IP6, 2).map(|front| self.reverse_v6(front))
    }

    fn reverse_v4(&self, front: usize) -> Reverse {
        let mut bytes = [0; 4];
        if front > 4 {
            return Reverse::Malformed;
        }
        for (at, byte) in bytes.iter_mut().take(front).enumerate() {
            let label = self.label(front - 1 - at);
            let is_plain = label == b"0" || label.first().is_some_and(|b| *b != b'0');
            match std::str::from_utf8(label).ok().and_then(|text| text.parse().ok()) {
                Some(value) if is_plain && label.iter().all(u8::is_ascii_digit) => *byte = value,
                _ => return Reverse::Malformed,
            }
        }
        if front == 4 { Reverse::Of(Ipv4Addr::from(bytes).into()) } else { Reverse::Above }
    }

    fn reverse_v6(&self, front: usize) -> Reverse {
        let mut bits = 0_u128;
        if front > 32 {
            return Reverse::Malformed;
        }
        for at in 0..front {
            let &[digit] = self.label(at) else { return Reverse::Malformed };
            let Some(nibble) = (digit as char).to_digit(16) else { return Reverse::Malformed };
            bits |= u128::from(nibble) << (4 * at);
        }
        if front == 32 { Reverse::Of(Ipv6Addr::from(bits).into()) } else { Reverse::Above }
    }
}

/// What a name of `in-addr.arpa` or `ip6.arpa` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reverse {
    /// The name of this address.
    Of(IpAddr),
    /// A name that those of addresses are below.
    Above,
    /// Another name.
    Malformed,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Labelled {
        Labelled::read(Name::parse(text).expect("a name").wire()).expect("labels")
    }

    #[test]
    fn text_and_wire() {
        let name = Name::parse("Www.Example.COM.").expect("a name");
        assert_eq!(name.wire(), b"\x03www\x07example\x03com\0");
        assert_eq!((name.to_string().as_str(), name.labels()), ("www.example.com.", 3));
        assert_eq!(Name::parse(".").expect("the root").to_string(), ".");
        assert_eq!(Name::parse("a..b"), Err(NameError::EmptyLabel("a..b".into())));
        let long = "a".repeat(64);
        assert_eq!(Name::parse(&long), Err(NameError::Label(long.clone())));
        let label = "b".repeat(63);
        let long = [&*label; 4].join(".");
        assert_eq!(Name::parse(&long), Err(NameError::Length(long.clone())));
        assert!(Name::parse(&long[3..]).is_ok());
    }

    #[test]
    fn compression_and_cut_names_are_no_names() {
        assert!(Labelled::read(b"\x03www\xc0\x0c").is_none());
        assert!(Labelled::read(b"\x03ww").is_none());
        assert!(Labelled::read(b"\x03www").is_none());
        assert!(Labelled::read(b"").is_none());
        let long: Vec<u8> = b"\x01a".repeat(127).into_iter().chain([0]).collect();
        assert_eq!(Labelled::read(&long).map(|name| name.count()), Some(127));
        let long: Vec<u8> = b"\x01a".repeat(128).into_iter().chain([0]).collect();
        assert!(Labelled::read(&long).is_none());
    }

    #[test]
    fn reverse_names() {
        for address in ["10.0.0.100", "fd00:77:30::2:9ba6", "::1", "255.0.255.1"] {
            let address: IpAddr = address.parse().expect("an address");
            let name = Name::reverse(address);
            assert_eq!(read(&name.to_string()).reverse(), Some(Reverse::Of(address)), "{name}");
        }
        for (text, expected) in [
            ("0.10.in-addr.arpa", Some(Reverse::Above)),
            ("in-addr.arpa", Some(Reverse::Above)),
            ("1.2.3.4.5.in-addr.arpa", Some(Reverse::Malformed)),
            ("01.2.3.4.in-addr.arpa", Some(Reverse::Malformed)),
            ("+1.2.3.4.in-addr.arpa", Some(Reverse::Malformed)),
            ("256.2.3.4.in-addr.arpa", Some(Reverse::Malformed)),
            ("10.d.f.ip6.arpa", Some(Reverse::Malformed)),
            ("d.f.ip6.arpa", Some(Reverse::Above)),
            ("arpa", None),
        ] {
            assert_eq!(read(text).reverse(), expected, "{text}");
        }
        let zone = |text: &str, prefix| {
            Name::reverse_zone(text.parse().expect("an address"), prefix).to_string()
        };
        assert_eq!(zone("10.96.0.0", 12), "10.in-addr.arpa.");
        assert_eq!(zone("10.96.0.0", 16), "96.10.in-addr.arpa.");
        assert_eq!(zone("fd00:77::", 16), "0.0.d.f.ip6.arpa.");
    }
}
