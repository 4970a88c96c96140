//! From protocol and port to a rule's rank, in a constant number of loads.

use std::sync::Arc;

/// A rank that no rule has: nothing matches.
pub(crate) const NO_RULE: u32 = u32::MAX;

/// Protocol and port as the tables ask for them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PortKey {
    /// 0 to 2 for TCP, UDP and SCTP, [`PortKey::OTHER`] for everything else.
    pub(crate) protocol: usize,
    pub(crate) port: u16,
}

impl PortKey {
    /// Protocols without ports, ICMP among them, which only rules without ports match (N10).
    pub(crate) const OTHER: usize = 3;

    #[inline]
    pub(crate) fn new(protocol: u8, port: u16) -> Self {
        use wire::flow_key::proto::{SCTP, TCP, UDP};
        let protocol = match protocol {
            TCP => 0,
            UDP => 1,
            SCTP => 2,
            _ => Self::OTHER,
        };
        Self { protocol, port }
    }
}

/// Cuts the ports of each protocol into intervals and numbers them.
///
/// A directory of 256 pages of 256 ports for each protocol that has more than one interval;
/// equal pages are kept once. Shared by all tables that cut the same way, which in practice are
/// many: most rules name the same few ports.
#[derive(Debug)]
pub(crate) struct PortMap {
    /// Number of each protocol's first interval; the last one is that of all other protocols.
    base: [u32; 4],
    /// Where each protocol's directory stands in `words`, [`NO_DIRECTORY`] if it is one interval.
    directory: [u32; 3],
    /// Directories and pages. A directory's entry is the number of a page, which begins at that
    /// many times 256; a page's is the interval, counted within its protocol.
    words: Box<[u16]>,
}

const NO_DIRECTORY: u32 = u32::MAX;

/// Ports of one page.
const PAGE: usize = 256;

impl PortMap {
    /// From the first port of every interval but the first, ascending, for each protocol.
    pub(crate) fn new(starts: &[Vec<u16>; 3]) -> Self {
        let (mut base, mut next) = ([0; 4], 0);
        let mut directory = [NO_DIRECTORY; 3];
        let mut words: Vec<u16> = Vec::new();
        for (protocol, starts) in starts.iter().enumerate() {
            base[protocol] = next;
            next += starts.len() as u32 + 1;
            if !starts.is_empty() {
                directory[protocol] = write_pages(starts, &mut words);
            }
        }
        base[PortKey::OTHER] = next;
        Self { base, directory, words: words.into() }
    }

    /// How many intervals there are.
    pub(crate) fn intervals(&self) -> usize {
        self.base[PortKey::OTHER] as usize + 1
    }

    /// The number of the interval that `key` lies in.
    #[inline]
    pub(crate) fn interval(&self, key: PortKey) -> usize {
        let base = self.base[key.protocol] as usize;
        match self.directory.get(key.protocol) {
            Some(&at) if at != NO_DIRECTORY => {
                let port = usize::from(key.port);
                let page = usize::from(self.words[at as usize + port / PAGE]);
                base + usize::from(self.words[page * PAGE + port % PAGE])
            }
            _ => base,
        }
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        size_of_val(&*self.words) + size_of::<Self>()
    }
}

/// Appends a directory and its pages to `words` and returns where the directory begins.
fn write_pages(starts: &[u16], words: &mut Vec<u16>) -> u32 {
    let at = words.len();
    words.resize(at + PAGE, 0);
    let (mut interval, mut ahead) = (0u16, starts.iter().peekable());
    for page in 0..PAGE {
        let mut content = [0u16; PAGE];
        for (low, slot) in content.iter_mut().enumerate() {
            if ahead.next_if(|start| usize::from(**start) == page * PAGE + low).is_some() {
                interval += 1;
            }
            *slot = interval;
        }
        // Only pages without a boundary repeat, and those stand behind one another.
        let last = words.len() - PAGE;
        if last > at && words[last..] == content {
            words[at + page] = (last / PAGE) as u16;
        } else {
            words[at + page] = (words.len() / PAGE) as u16;
            words.extend_from_slice(&content);
        }
    }
    at as u32
}

/// The lowest rank of the rules that match a port, for every port.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortTable {
    /// `None`: no rule matches any port.
    map: Option<Arc<PortMap>>,
    ranks: Arc<[u32]>,
}

impl PortTable {
    pub(crate) fn new(map: Arc<PortMap>, ranks: Arc<[u32]>) -> Self {
        debug_assert_eq!(map.intervals(), ranks.len());
        Self { map: Some(map), ranks }
    }

    /// Lowest rank of a rule that matches, [`NO_RULE`] if none does.
    #[inline]
    pub(crate) fn rank(&self, key: PortKey) -> u32 {
        match &self.map {
            Some(map) => self.ranks[map.interval(key)],
            None => NO_RULE,
        }
    }

    #[cfg(test)]
    pub(crate) fn map(&self) -> Option<&Arc<PortMap>> {
        self.map.as_ref()
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        size_of_val(&*self.ranks) + 2 * size_of::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn intervals_count_the_starts_below(
            mut starts in prop::array::uniform3(prop::collection::btree_set(1u16.., 0..40)),
            dense in 0u16..1500,
            ask in prop::collection::vec(any::<u16>(), 50),
        ) {
            starts[1].extend((0..dense).map(|i| 3000 + i));
            let lists = starts.clone().map(|s| s.into_iter().collect::<Vec<_>>());
            let map = PortMap::new(&lists);
            let mut base = 0;
            for (protocol, set) in starts.iter().enumerate() {
                let near = set.iter().flat_map(|s| [s - 1, *s, s.saturating_add(1)]);
                for port in ask.iter().copied().chain(near).chain([0, u16::MAX]) {
                    let want = base + set.range(..=port).count();
                    prop_assert_eq!(map.interval(PortKey { protocol, port }), want);
                }
                base += set.len() + 1;
            }
            prop_assert_eq!(map.interval(PortKey { protocol: PortKey::OTHER, port: 9 }), base);
            prop_assert_eq!(map.intervals(), base + 1);
        }
    }

    #[test]
    fn every_port_its_own_interval() {
        let all: Vec<u16> = (1..=u16::MAX).collect();
        let map = PortMap::new(&[all.clone(), all.clone(), all]);
        let last = PortKey { protocol: 2, port: u16::MAX };
        assert_eq!(map.interval(last), 3 * 65536 - 1);
    }
}
