//! Rules, written as the small programs that the kernel runs: load into a register, compare, act.

use super::elements::bounds;
use super::intervals::Interval;
use super::message::{Attributes, Kind, NFTA_DATA_VALUE, NFTA_LIST_ELEM, Transaction};

/// The register that these rules use (NFT_REG_1, 16 bytes).
pub(super) const REGISTER: u32 = 1;
/// The second register, for expressions that take two (NFT_REG_2).
const SECOND: u32 = 2;
/// The register of verdicts.
const VERDICT: u32 = 0;

/// A `meta` key: metadata of a packet (`NFT_META_*`).
#[derive(Clone, Copy)]
pub(super) enum Meta {
    /// EtherType, in network order.
    EtherType = 1,
    /// The packet's mark, in native order.
    Mark = 3,
    /// Name of the interface by which it was received.
    InputName = 6,
    /// Name of the interface by which it will leave.
    OutputName = 7,
    /// NFPROTO_IPV4 or NFPROTO_IPV6.
    Family = 15,
    /// IP protocol.
    L4Protocol = 16,
}

/// The base of an offset (`NFT_PAYLOAD_*`).
#[derive(Clone, Copy)]
pub(super) enum Base {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// One rule under construction.
pub(super) struct Rule<'a, 'b>(&'a mut Attributes<'b>);

impl Rule<'_, '_> {
    pub(super) fn expression(
        &mut self,
        name: &str,
        data: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Self {
        const NAME: u16 = 1;
        const DATA: u16 = 2;
        self.0.nest(NFTA_LIST_ELEM, |e| {
            e.text(NAME, name).nest(DATA, data);
        });
        self
    }

    pub(super) fn load_meta(&mut self, key: Meta) -> &mut Self {
        self.expression("meta", |d| {
            d.number(1, REGISTER).number(2, key as u32);
        })
    }

    pub(super) fn load(&mut self, base: Base, offset: u32, len: u32) -> &mut Self {
        self.load_to(REGISTER, base, offset, len)
    }

    fn load_to(&mut self, register: u32, base: Base, offset: u32, len: u32) -> &mut Self {
        self.expression("payload", |d| {
            d.number(1, register).number(2, base as u32).number(3, offset).number(4, len);
        })
    }

    /// Writes the first register into the packet. No checksum is adjusted.
    pub(super) fn store(&mut self, base: Base, offset: u32, len: u32) -> &mut Self {
        self.expression("payload", |d| {
            d.number(5, REGISTER).number(2, base as u32).number(3, offset).number(4, len);
        })
    }

    /// Sends the packet unchanged by the interface whose index is in the first register.
    pub(super) fn forward(&mut self) -> &mut Self {
        self.expression("fwd", |d| {
            d.number(1, REGISTER);
        })
    }

    /// Sends the packet by the interface whose index is at `link` of its Ethernet header, in native
    /// order, to the neighbour whose address is at `at`, `len` bytes long. The kernel resolves the
    /// neighbour and decrements the TTL.
    pub(super) fn forward_to(&mut self, link: u32, at: (Base, u32), len: u32) -> &mut Self {
        let family = if len == 4 { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
        self.load_to(SECOND, Base::Link, link, 4).load(at.0, at.1, len).expression("fwd", |d| {
            d.number(1, SECOND).number(2, REGISTER).number(3, family as u32);
        })
    }

    fn compare(&mut self, operator: u32, value: &[u8]) -> &mut Self {
        self.expression("cmp", |d| {
            d.number(1, REGISTER).number(2, operator).nest(3, |v| {
                v.bytes(NFTA_DATA_VALUE, value);
            });
        })
    }

    /// The rule continues only if the register equals `value`.
    pub(super) fn equal(&mut self, value: &[u8]) -> &mut Self {
        self.compare(0, value)
    }

    /// The rule continues only if the register differs from `value`.
    pub(super) fn differ(&mut self, value: &[u8]) -> &mut Self {
        self.compare(1, value)
    }

    /// The rule continues only if the register, in network order, is `value` or more.
    pub(super) fn at_least(&mut self, value: &[u8]) -> &mut Self {
        self.compare(5, value)
    }

    /// Loads a constant into the register.
    pub(super) fn load_immediate(&mut self, value: &[u8]) -> &mut Self {
        self.expression("immediate", |d| {
            d.number(1, REGISTER).nest(2, |v| {
                v.bytes(NFTA_DATA_VALUE, value);
            });
        })
    }

    /// Keeps the register's bits that `mask` has.
    pub(super) fn mask(&mut self, mask: &[u8]) -> &mut Self {
        self.bitwise(mask, &vec![0; mask.len()])
    }

    /// Keeps the register's bits that `mask` has, then flips those of `flip`.
    pub(super) fn bitwise(&mut self, mask: &[u8], flip: &[u8]) -> &mut Self {
        self.expression("bitwise", |d| {
            d.number(1, REGISTER).number(2, REGISTER).number(3, mask.len() as u32);
            d.nest(4, |v| {
                v.bytes(NFTA_DATA_VALUE, mask);
            });
            d.nest(5, |v| {
                v.bytes(NFTA_DATA_VALUE, flip);
            });
        })
    }

    /// The rule continues only if the register's value is in the set, or (`inverted`) is not in the
    /// set.
    pub(super) fn lookup(&mut self, set: &str, inverted: bool) -> &mut Self {
        self.expression("lookup", |d| {
            d.text(1, set).number(2, REGISTER).number(5, u32::from(inverted));
        })
    }

    /// Masquerades the packet, with a random source port, so that two connections rarely compete
    /// for one.
    pub(super) fn masquerade(&mut self) -> &mut Self {
        const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;
        self.expression("masq", |d| {
            d.number(1, NF_NAT_RANGE_PROTO_RANDOM_FULLY);
        })
    }

    /// Counts packets and bytes.
    pub(super) fn count(&mut self) -> &mut Self {
        self.expression("counter", |_| {})
    }

    /// Drops the packet.
    pub(super) fn drop(&mut self) -> &mut Self {
        const NF_DROP: u32 = 0;
        self.verdict(NF_DROP)
    }

    /// Accepts the packet: the chain ends.
    pub(super) fn accept(&mut self) -> &mut Self {
        const NF_ACCEPT: u32 = 1;
        self.verdict(NF_ACCEPT)
    }

    fn verdict(&mut self, code: u32) -> &mut Self {
        self.expression("immediate", |d| {
            d.number(1, VERDICT).nest(2, |v| {
                v.nest(2, |verdict| {
                    verdict.number(1, code);
                });
            });
        })
    }
}

impl Transaction {
    /// Adds a rule to the end of a chain.
    pub(super) fn add_rule(
        &mut self,
        table: &str,
        chain: &str,
        expressions: impl FnOnce(&mut Rule<'_, '_>),
    ) {
        self.add(Kind::NewRule, |a| {
            a.text(1, table).text(2, chain).nest(4, |list| expressions(&mut Rule(list)));
        });
    }

    /// Adds a set of disjoint intervals of one family's addresses, and fills it.
    pub(super) fn add_set(
        &mut self,
        table: &str,
        name: &str,
        intervals: impl IntoIterator<Item = Interval>,
        is_ipv4: bool,
    ) {
        const NFT_SET_INTERVAL: u32 = 4;
        /// The type that `nft` calls `ipv4_addr` or `ipv6_addr`.
        const TYPES: [u32; 2] = [7, 8];
        let len = if is_ipv4 { 4 } else { 16 };
        let id = self.next_set_id();
        self.add(Kind::NewSet, |a| {
            a.text(1, table).text(2, name).number(3, NFT_SET_INTERVAL);
            a.number(4, TYPES[usize::from(!is_ipv4)]).number(5, len).number(10, id);
        });
        let elements: Vec<_> = bounds(intervals, is_ipv4).collect();
        self.fill_set(table, name, id, &elements);
    }
}
