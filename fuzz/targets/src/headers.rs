//! Any bytes as a header: if `new_checked` accepts them, no accessor panics.

use std::hint::black_box;

use podswitch_wire::icmp::nd;
use podswitch_wire::{arp, ethernet, icmp, ipv4, ipv6, sctp, tcp, udp, vlan};

/// Calls every getter named on a checked view.
macro_rules! look {
    ($view:expr, $bytes:expr, $($getter:ident),*) => {
        if let Ok(view) = $view($bytes) {
            $(black_box(view.$getter());)*
        }
    };
}

/// Writes back the value that a getter read, and reads it again.
macro_rules! rewrite {
    ($view:expr, $bytes:expr, $($getter:ident $setter:ident),*) => {
        let mut copy = $bytes.to_vec();
        if let Ok(mut view) = $view(&mut copy[..]) {
            $(
                let value = view.$getter();
                view.$setter(value);
                assert_eq!(view.$getter(), value);
            )*
            assert!(view.check().is_ok());
            assert_eq!(copy, $bytes);
        }
    };
}

/// See the module's description.
pub(crate) fn run(input: &[u8]) {
    let Some((which, bytes)) = input.split_first() else {
        return;
    };
    match which % 9 {
        0 => link(bytes),
        1 => arp(bytes),
        2 => ipv4(bytes),
        3 => ipv6(bytes),
        4 => tcp(bytes),
        5 => udp(bytes),
        6 => sctp(bytes),
        7 => icmp(bytes),
        _ => neighbour_discovery(bytes),
    }
}

fn link(bytes: &[u8]) {
    use ethernet::Frame;
    use vlan::Tag;
    look!(Frame::new_checked, bytes, dst, src, ethertype, payload);
    rewrite!(Frame::new_checked, bytes, dst set_dst, src set_src, ethertype set_ethertype);
    look!(Tag::new_checked, bytes, tci, priority, drop_eligible, vid, ethertype, payload);
    rewrite!(Tag::new_checked, bytes, tci set_tci, ethertype set_ethertype);
}

fn arp(bytes: &[u8]) {
    use arp::Packet;
    rewrite!(
        Packet::new_checked, bytes, operation set_operation, sender_mac set_sender_mac,
        sender_ip set_sender_ip, target_mac set_target_mac, target_ip set_target_ip
    );
}

fn ipv4(bytes: &[u8]) {
    use ipv4::Packet;
    look!(
        Packet::new_checked,
        bytes,
        version,
        dont_fragment,
        more_fragments,
        fragment_offset,
        options,
        payload,
        verify_checksum
    );
    rewrite!(
        Packet::new_checked, bytes, header_len set_version_and_header_len,
        traffic_class set_traffic_class, total_len set_total_len,
        identification set_identification, ttl set_ttl, protocol set_protocol,
        checksum set_checksum, src set_src, dst set_dst
    );
    let mut copy = bytes.to_vec();
    if let Ok(mut view) = Packet::new_checked(&mut copy[..]) {
        view.fill_checksum();
        assert!(view.verify_checksum());
        view.payload_mut().fill(0);
    }
}

fn ipv6(bytes: &[u8]) {
    use ipv6::Packet;
    look!(Packet::new_checked, bytes, version, flow_label, payload);
    rewrite!(
        Packet::new_checked, bytes, traffic_class set_traffic_class,
        payload_len set_payload_len, next_header set_next_header, hop_limit set_hop_limit,
        src set_src, dst set_dst
    );
    if let Ok(view) = Packet::new_checked(bytes) {
        let mut chain = view.extension_headers();
        let mut len = 0;
        for header in chain.by_ref() {
            assert!(header.bytes.len() >= 8);
            black_box(header.fragment());
            len += header.bytes.len();
        }
        assert_eq!(len + chain.remainder().1.len(), view.payload().len());
    }
}

fn tcp(bytes: &[u8]) {
    use tcp::Packet;
    look!(Packet::new_checked, bytes, header_len, payload);
    rewrite!(
        Packet::new_checked, bytes, src_port set_src_port, dst_port set_dst_port,
        sequence set_sequence, acknowledgment set_acknowledgment, flags set_flags,
        window set_window, checksum set_checksum, urgent set_urgent
    );
    if let Ok(view) = Packet::new_checked(bytes) {
        assert!(view.options().count() <= 20);
    }
}

fn udp(bytes: &[u8]) {
    use udp::Packet;
    look!(Packet::new_checked, bytes, is_empty, payload);
    rewrite!(
        Packet::new_checked, bytes, src_port set_src_port, dst_port set_dst_port, len set_len,
        checksum set_checksum
    );
}

fn sctp(bytes: &[u8]) {
    use sctp::Packet;
    rewrite!(
        Packet::new_checked, bytes, src_port set_src_port, dst_port set_dst_port,
        verification_tag set_verification_tag, checksum set_checksum
    );
    if let Ok(view) = Packet::new_checked(bytes) {
        let len: usize = view.chunks().map(|chunk| 4 + chunk.value.len()).sum();
        assert!(len + sctp::HEADER_LEN <= bytes.len());
    }
}

fn icmp(bytes: &[u8]) {
    use icmp::Packet;
    look!(Packet::new_checked, bytes, sequence, payload);
    rewrite!(
        Packet::new_checked, bytes, kind set_kind, code set_code, checksum set_checksum,
        rest set_rest, identifier set_identifier, mtu_v4 set_mtu_v4, mtu_v6 set_mtu_v6
    );
}

fn neighbour_discovery(bytes: &[u8]) {
    /// After `new_checked` the options fill the message to its end.
    macro_rules! options {
        ($view:expr, $fixed:literal) => {
            if let Ok(view) = $view(bytes) {
                assert!(view.options().count() * 8 <= bytes.len() - $fixed);
            }
        };
    }
    look!(nd::NeighbourSolicitation::new_checked, bytes, target);
    look!(nd::NeighbourAdvertisement::new_checked, bytes, target, flags);
    look!(nd::Redirect::new_checked, bytes, target, destination);
    look!(
        nd::RouterAdvertisement::new_checked,
        bytes,
        hop_limit,
        flags,
        lifetime,
        reachable_time,
        retransmit_time
    );
    options!(nd::NeighbourSolicitation::new_checked, 24);
    options!(nd::NeighbourAdvertisement::new_checked, 24);
    options!(nd::RouterSolicitation::new_checked, 8);
    options!(nd::RouterAdvertisement::new_checked, 16);
    options!(nd::Redirect::new_checked, 40);
}
