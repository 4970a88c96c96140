//! Elements of sets.

use netlink_packet_core::NlasIterator;

use super::intervals::{Interval, IntervalChange};
use super::message::{Attributes, Kind, NFTA_DATA_VALUE, NFTA_LIST_ELEM, Transaction};

/// NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_FLAGS.
const KEY: u16 = 1;
const FLAGS: u16 = 3;
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
/// Elements that fit in one attribute with its 16-bit length.
const CHUNK: usize = 500;

/// An element of a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Element {
    key: Vec<u8>,
    /// `NFT_SET_ELEM_*`.
    flags: u32,
    /// Whatever else it has. The elements that are written here have nothing else.
    rest: Vec<u8>,
}

impl Element {
    /// One of a set without intervals.
    pub(super) fn new(key: Vec<u8>) -> Self {
        Self { key, flags: 0, rest: Vec::new() }
    }

    /// Reads one as the kernel lists it.
    pub(super) fn read(attributes: &[u8]) -> Self {
        let mut element = Self::new(Vec::new());
        for nla in NlasIterator::new(attributes).flatten() {
            match nla.kind() {
                KEY => {
                    let mut inside = NlasIterator::new(nla.value()).flatten();
                    let value = inside.find(|nla| nla.kind() == NFTA_DATA_VALUE);
                    element.key = value.map(|nla| nla.value().to_vec()).unwrap_or_default();
                }
                FLAGS => {
                    let flags = nla.value().first_chunk().copied().unwrap_or_default();
                    element.flags = u32::from_be_bytes(flags);
                }
                other => {
                    element.rest.extend(other.to_be_bytes());
                    element.rest.extend(nla.value());
                }
            }
        }
        element
    }

    fn write(&self, list: &mut Attributes<'_>) {
        list.nest(NFTA_LIST_ELEM, |e| {
            if self.flags != 0 {
                e.number(FLAGS, self.flags);
            }
            e.nest(KEY, |k| {
                k.bytes(NFTA_DATA_VALUE, &self.key);
            });
        });
    }
}

/// The elements of a set of intervals: the first address of each, and the one after its last.
pub(super) fn bounds(
    intervals: impl IntoIterator<Item = Interval>,
    is_ipv4: bool,
) -> impl Iterator<Item = Element> {
    let (len, top) = if is_ipv4 { (4, u32::MAX.into()) } else { (16, u128::MAX) };
    let key = move |value: u128| Element::new(value.to_be_bytes()[16 - len..].to_vec());
    intervals.into_iter().flat_map(move |(first, last)| {
        // An interval up to the last address has no end element.
        let end =
            (last < top).then(|| Element { flags: NFT_SET_ELEM_INTERVAL_END, ..key(last + 1) });
        std::iter::once(key(first)).chain(end)
    })
}

/// How the elements of a set change.
#[derive(Debug)]
pub(super) struct SetChange {
    pub(super) set: String,
    pub(super) removed: Vec<Element>,
    pub(super) added: Vec<Element>,
}

impl SetChange {
    /// For a set of intervals.
    pub(super) fn of_intervals(set: String, change: IntervalChange, is_ipv4: bool) -> Self {
        let removed = bounds(change.removed, is_ipv4).collect();
        Self { set, removed, added: bounds(change.added, is_ipv4).collect() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }
}

impl Transaction {
    /// Fills a set that this transaction creates, which has the number `id` in it.
    pub(super) fn fill_set(&mut self, table: &str, set: &str, id: u32, elements: &[Element]) {
        self.elements(Kind::NewElements, table, set, Some(id), elements);
    }

    /// Adds or deletes elements of a set.
    pub(super) fn elements(
        &mut self,
        kind: Kind,
        table: &str,
        set: &str,
        id: Option<u32>,
        elements: &[Element],
    ) {
        for chunk in elements.chunks(CHUNK) {
            self.add(kind, |a| {
                a.text(1, table).text(2, set);
                if let Some(id) = id {
                    a.number(4, id);
                }
                a.nest(3, |list| chunk.iter().for_each(|element| element.write(list)));
            });
        }
    }
}
