//! The VTEP table: which packets are trusted (threats T-O2 to T-O4, T-O7), and how it changes.

mod support;

use std::net::IpAddr;

use podswitch_vxlan::decap::Decap;
use podswitch_vxlan::ecn::Ecn;
use podswitch_vxlan::header::Vni;
use podswitch_vxlan::pmtu::{self, PmtuRefusal};
use podswitch_vxlan::template::{Outer, TemplateError};
use podswitch_vxlan::vtep::{Refusal, RemoteVtep, TableError, VtepIndex, VtepTable};
use podswitch_wire::addr::Mac;
use support::udp_frame;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn vni(number: u32) -> Vni {
    Vni::new(number).unwrap()
}

fn end(address: &str, mac: u8, network: u32) -> RemoteVtep {
    let own = if address.contains(':') { "2001:db8::1" } else { "192.0.2.1" };
    let outer = Outer::new(ip(own), ip(address), vni(network));
    RemoteVtep::new(outer, Mac([2, 0, 0, 0, 0, mac])).unwrap()
}

fn table() -> VtepTable {
    VtepTable::new([ip("192.0.2.1"), ip("2001:db8::1")], [(vni(1), 0), (vni(7), 3)])
}

fn packet(source: &str, destination: &str, network: u32) -> Decap {
    Decap {
        vni: vni(network),
        start: 50,
        end: 100,
        source: ip(source),
        destination: ip(destination),
        ecn: Ecn::NotEct,
    }
}

#[test]
fn only_known_vteps_are_admitted() {
    let mut table = table();
    let two = table.insert(end("192.0.2.2", 2, 1).also_from(ip("2001:db8::2"))).unwrap();
    let three = table.insert(end("192.0.2.3", 3, 1)).unwrap();
    let seven = table.insert(end("192.0.2.2", 2, 7)).unwrap();
    assert_eq!(table.len(), 3);

    let ask = |s, d, n| table.admit(&packet(s, d, n)).map(|a| (a.end, a.zone));
    assert_eq!(ask("192.0.2.2", "192.0.2.1", 1), Ok((two, 0)));
    assert_eq!(ask("2001:db8::2", "2001:db8::1", 1), Ok((two, 0)));
    assert_eq!(ask("192.0.2.2", "192.0.2.1", 7), Ok((seven, 3)));
    assert_eq!(ask("192.0.2.3", "192.0.2.1", 1), Ok((three, 0)));
    assert_eq!(ask("192.0.2.3", "192.0.2.1", 7), Err(Refusal::UnknownVtep));
    assert_eq!(ask("192.0.2.4", "192.0.2.1", 1), Err(Refusal::UnknownVtep));
    assert_eq!(ask("192.0.2.2", "192.0.2.1", 2), Err(Refusal::UnknownVni));
    assert_eq!(ask("192.0.2.2", "192.0.2.9", 1), Err(Refusal::NotLocal));

    assert_eq!(table.trusts(two, Some(two)), Ok(()));
    assert_eq!(table.trusts(two, Some(three)), Err(Refusal::InnerSource));
    assert_eq!(table.trusts(two, None), Err(Refusal::InnerSource));
    assert_eq!(table.by_mac(Mac([2, 0, 0, 0, 0, 2]), vni(7), false), Some(seven));
    assert_eq!(table.by_mac(Mac([2, 0, 0, 0, 0, 9]), vni(1), false), None);
}

/// A node changes its address and MAC address: the old ones are unknown afterwards, and the index
/// stays.
#[test]
fn nodes_change() {
    let mut table = table();
    let two = table.insert(end("192.0.2.2", 2, 1)).unwrap();
    let three = table.insert(end("192.0.2.3", 3, 1)).unwrap();
    let before = table.clone();

    table.replace(two, end("192.0.2.22", 2, 1)).unwrap();
    assert_eq!(table.by_source(ip("192.0.2.2"), vni(1)), None);
    assert_eq!(table.by_source(ip("192.0.2.22"), vni(1)), Some(two));
    table.replace(two, end("192.0.2.22", 9, 1)).unwrap();
    assert_eq!(table.by_mac(Mac([2, 0, 0, 0, 0, 2]), vni(1), false), None);
    assert_eq!(table.get(two).unwrap().mac(), Mac([2, 0, 0, 0, 0, 9]));

    let gone = table.remove(three).unwrap();
    assert_eq!(gone.outer().destination, ip("192.0.2.3"));
    assert!(table.get(three).is_none() && table.remove(three).is_err());
    assert_eq!(table.by_source(ip("192.0.2.3"), vni(1)), None);
    assert_eq!(table.iter().map(|(i, _)| i).collect::<Vec<_>>(), [two]);
    let four = table.insert(end("192.0.2.4", 4, 1)).unwrap();
    assert_eq!((four, table.len()), (three, 2));

    // The clone still has the previous state.
    assert_eq!(before.by_source(ip("192.0.2.2"), vni(1)), Some(two));
    assert_eq!(before.get(three).unwrap().outer().destination, ip("192.0.2.3"));
}

#[test]
fn refused_changes_change_nothing() {
    let mut table = table();
    assert!(table.is_empty());
    let two = table.insert(end("192.0.2.2", 2, 1)).unwrap();
    let three = table.insert(end("192.0.2.3", 3, 1)).unwrap();
    let taken = TableError::AddressTaken(ip("192.0.2.2"), vni(1));
    assert_eq!(table.insert(end("192.0.2.2", 8, 1)), Err(taken));
    assert_eq!(table.replace(three, end("192.0.2.3", 3, 1).also_from(ip("192.0.2.2"))), Err(taken));
    let mac = TableError::MacTaken(Mac([2, 0, 0, 0, 0, 2]), vni(1));
    assert_eq!(table.insert(end("192.0.2.8", 2, 1)), Err(mac));
    let own = TableError::OwnAddress(ip("192.0.2.1"));
    assert_eq!(table.insert(end("192.0.2.8", 8, 1).also_from(ip("192.0.2.1"))), Err(own));
    let nobody = VtepIndex(77);
    assert_eq!(table.replace(nobody, end("192.0.2.8", 8, 1)), Err(TableError::NoSuchVtep(nobody)));
    assert_eq!(table.by_source(ip("192.0.2.2"), vni(1)), Some(two));
    assert_eq!(table.by_source(ip("192.0.2.3"), vni(1)), Some(three));
    assert_eq!(table.len(), 2);
    // Bridges have no MAC address of their own, so they do not conflict.
    for address in ["192.0.2.9", "192.0.2.10"] {
        let outer = Outer::new(ip("192.0.2.1"), ip(address), vni(1));
        table.insert(RemoteVtep::new(outer, Mac::ZERO).unwrap()).unwrap();
    }
    assert_eq!(table.by_mac(Mac::ZERO, vni(1), false), None);
}

#[test]
fn impossible_tunnels() {
    let good = Outer::new(ip("192.0.2.1"), ip("192.0.2.2"), vni(1));
    let mac = Mac([2, 0, 0, 0, 0, 2]);
    let refused = |outer| RemoteVtep::new(outer, mac).unwrap_err();
    let v6 = ip("2001:db8::1");
    let family = TemplateError::Family(v6, good.destination);
    assert_eq!(refused(Outer { source: v6, ..good }), family);
    for text in ["0.0.0.0", "224.0.0.1", "255.255.255.255"] {
        let address = TemplateError::Address(ip(text));
        assert_eq!(refused(Outer { destination: ip(text), ..good }), address);
    }
    assert_eq!(refused(Outer { port: 0, ..good }), TemplateError::Port);
    assert_eq!(refused(Outer { ttl: 0, ..good }), TemplateError::Ttl);
    let dscp = podswitch_vxlan::template::Dscp::Fixed(64);
    assert_eq!(refused(Outer { dscp, ..good }), TemplateError::Dscp(64));
}

/// The part of a tunnel packet that an ICMP error quotes: from the outer IP header on.
fn quote(source: &str, destination: &str, ports: (u16, u16), network: u32) -> Vec<u8> {
    let mut payload = podswitch_vxlan::header::bytes(vni(network)).to_vec();
    payload.extend([0; 1450]);
    udp_frame(ip(source), ip(destination), ports, &payload)[14..].to_vec()
}

#[test]
fn path_mtu_only_from_our_own_packets() {
    let mut table = table();
    let two = table.insert(end("192.0.2.2", 2, 1)).unwrap();
    let six = table.insert(end("2001:db8::2", 6, 7)).unwrap();
    let learn = |quote: &[u8], mtu| {
        let quoted = pmtu::read_quote(quote).ok_or(PmtuRefusal::NotOurs)?;
        pmtu::learn(&table, &quoted, mtu)
    };
    let ours = quote("192.0.2.1", "192.0.2.2", (50_000, 4789), 1);
    assert_eq!(learn(&ours, 1400), Ok((two, 1400)));
    // The shortest quotation of RFC 792: the IP header and eight bytes.
    assert_eq!(learn(&ours[..28], 1400), Ok((two, 1400)));
    assert_eq!(learn(&ours[..27], 1400), Err(PmtuRefusal::NotOurs));
    assert_eq!(learn(&ours, 68), Ok((two, 552)));
    for mtu in [0, 1486, 9000, 70_000] {
        assert_eq!(learn(&ours, mtu), Err(PmtuRefusal::Implausible), "{mtu}");
    }
    let v6 = quote("2001:db8::1", "2001:db8::2", (50_000, 4789), 7);
    assert_eq!(learn(&v6, 1400), Ok((six, 1400)));
    assert_eq!(learn(&v6[..48], 600), Ok((six, 1280)));

    for not_ours in [
        quote("192.0.2.9", "192.0.2.2", (50_000, 4789), 1),
        quote("192.0.2.1", "192.0.2.9", (50_000, 4789), 1),
        quote("192.0.2.1", "192.0.2.2", (1000, 4789), 1),
        quote("192.0.2.1", "192.0.2.2", (50_000, 53), 1),
        quote("192.0.2.1", "192.0.2.2", (50_000, 4789), 2),
    ] {
        assert_eq!(learn(&not_ours, 1400), Err(PmtuRefusal::NotOurs));
    }
    let quoted = pmtu::read_quote(&ours).unwrap();
    assert_eq!((quoted.vni, quoted.inner, quoted.len), (Some(vni(1)), Some(36), 1486));
    let mut later = ours.clone();
    later[7] = 1;
    assert_eq!(pmtu::read_quote(&later), None);
}

#[test]
fn vteps_can_exchange_addresses_in_one_change() {
    let mut table = table();
    let two = table.insert(end("192.0.2.2", 2, 1)).unwrap();
    let three = table.insert(end("192.0.2.3", 3, 1)).unwrap();
    table.insert(end("192.0.2.4", 4, 1)).unwrap();
    let swapped = vec![(two, end("192.0.2.3", 3, 1)), (three, end("192.0.2.2", 2, 1))];
    table.replace_all(swapped).unwrap();
    assert_eq!(table.by_source(ip("192.0.2.3"), vni(1)), Some(two));
    assert_eq!(table.by_mac(Mac([2, 0, 0, 0, 0, 2]), vni(1), false), Some(three));
    assert_eq!(table.len(), 3);

    // If one is invalid, nothing changes.
    let taken = vec![(two, end("192.0.2.9", 9, 1)), (three, end("192.0.2.4", 5, 1))];
    let error = TableError::AddressTaken(ip("192.0.2.4"), vni(1));
    assert_eq!(table.replace_all(taken), Err((three, error)));
    assert_eq!(table.by_source(ip("192.0.2.3"), vni(1)), Some(two));
    assert_eq!(table.by_source(ip("192.0.2.9"), vni(1)), None);
    let nobody = VtepIndex(77);
    let error = Err((nobody, TableError::NoSuchVtep(nobody)));
    assert_eq!(table.replace_all(vec![(nobody, end("192.0.2.8", 8, 1))]), error);
}
