//! The format of records: information elements of the IANA registry, in order.

/// The enterprise number of reverse elements (RFC 5103 §6.1).
const REVERSE: u32 = 29305;

/// An information element and its length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element {
    id: u16,
    length: u16,
    is_reverse: bool,
}

const fn element(id: u16, length: u16) -> Element {
    Element { id, length, is_reverse: false }
}

const fn reverse(id: u16, length: u16) -> Element {
    Element { id, length, is_reverse: true }
}

/// The templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Template {
    Flow4,
    Flow6,
    Drop4,
    Drop6,
    /// Dropped frames that are not IP, or whose addresses are not known.
    DropOther,
}

impl Template {
    pub(super) const ALL: [Self; 5] =
        [Self::Flow4, Self::Flow6, Self::Drop4, Self::Drop6, Self::DropOther];

    /// Its number in messages (RFC 7011 §3.4.1).
    pub(super) const fn id(self) -> u16 {
        256 + self as u16
    }

    /// Its elements.
    pub(super) fn elements(self) -> Vec<Element> {
        const FLOW_ID: Element = element(148, 8);
        const PORTS: [Element; 2] = [element(7, 2), element(11, 2)];
        const PROTOCOL: Element = element(4, 1);
        const COUNTS: [Element; 2] = [element(1, 8), element(2, 8)];
        const REVERSE_COUNTS: [Element; 2] = [reverse(1, 8), reverse(2, 8)];
        const TIMES: [Element; 2] = [element(152, 8), element(153, 8)];
        // flowEndReason, biflowDirection.
        const END: [Element; 2] = [element(136, 1), element(239, 1)];
        const NAT_PORTS: [Element; 2] = [element(227, 2), element(228, 2)];
        // forwardingStatus, firewallEvent.
        const VERDICT: [Element; 2] = [element(89, 1), element(233, 1)];
        let addresses = match self {
            Self::Flow4 | Self::Drop4 => vec![element(8, 4), element(12, 4)],
            Self::Flow6 | Self::Drop6 => vec![element(27, 16), element(28, 16)],
            Self::DropOther => Vec::new(),
        };
        let nat = match self {
            Self::Flow4 => vec![element(225, 4), element(226, 4)],
            Self::Flow6 => vec![element(281, 16), element(282, 16)],
            _ => Vec::new(),
        };
        match self {
            Self::Flow4 | Self::Flow6 => [
                &[FLOW_ID][..],
                &addresses,
                &PORTS,
                &[PROTOCOL],
                &COUNTS,
                &REVERSE_COUNTS,
                &TIMES,
                &END,
                &nat,
                &NAT_PORTS,
                &VERDICT,
            ]
            .concat(),
            Self::Drop4 | Self::Drop6 => {
                [&addresses[..], &PORTS, &[PROTOCOL], &COUNTS, &TIMES, &VERDICT].concat()
            }
            Self::DropOther => [&COUNTS[..], &TIMES, &VERDICT].concat(),
        }
    }

    /// Bytes of a record.
    #[cfg(test)]
    pub(super) fn length(self) -> usize {
        self.elements().iter().map(|element| usize::from(element.length)).sum()
    }

    /// The template record (RFC 7011 §3.4.1).
    pub(super) fn record(self) -> Vec<u8> {
        let elements = self.elements();
        let mut bytes = self.id().to_be_bytes().to_vec();
        bytes.extend((elements.len() as u16).to_be_bytes());
        for Element { id, length, is_reverse } in elements {
            let enterprise = if is_reverse { 1 << 15 } else { 0 };
            bytes.extend((id | enterprise).to_be_bytes());
            bytes.extend(length.to_be_bytes());
            if is_reverse {
                bytes.extend(REVERSE.to_be_bytes());
            }
        }
        bytes
    }
}
