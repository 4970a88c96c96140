//! VXLAN (RFC 7348): header, encapsulation template and VTEP table of podswitch. Can be used alone.
//!
//! The crate works on byte slices. It opens no sockets, reads no clocks, allocates nothing per
//! packet, and knows neither policy nor ports.
//!
//! * [`header`]: the eight bytes, and [`Vni`](header::Vni).
//! * [`template`]: outer headers built once and copied in front of each frame.
//! * [`mod@decap`]: from an outer packet to the inner frame.
//! * [`ecn`]: ECN through the tunnel (RFC 6040).
//! * [`vtep`]: the known VTEPs, and which of them are trusted.
//! * [`pmtu`]: path MTU from ICMP errors that quote tunnel packets.
//!
//! # A frame through a tunnel
//!
//! ```
//! use podswitch_vxlan::decap::{ChecksumState, DecapRules, decap};
//! use podswitch_vxlan::ecn;
//! use podswitch_vxlan::header::Vni;
//! use podswitch_vxlan::template::{InnerFacts, Outer, Template};
//! use podswitch_vxlan::vtep::{RemoteVtep, VtepTable};
//! use podswitch_wire::addr::Mac;
//! use podswitch_wire::flow_key::HashKey;
//! use podswitch_wire::parse::parse;
//!
//! // When tables are compiled: the outer headers from A to B, and the VTEPs that B trusts.
//! let (a, b) = ("192.0.2.1".parse()?, "192.0.2.2".parse()?);
//! let vni = Vni::new(42).expect("24 bits");
//! let macs = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
//! let template = Template::new(&Outer { ethernet: Some(macs), ..Outer::new(a, b, vni) })?;
//! let mut vteps_of_b = VtepTable::new([b], [(vni, 0)]);
//! let a_seen_by_b = vteps_of_b.insert(RemoteVtep::new(Outer::new(b, a, vni), macs.0)?)?;
//!
//! // For each packet: room for the headers in front of the inner frame, then one call.
//! let cluster_key = HashKey::new(7);
//! # let inner = etherparse_frame();
//! let facts = InnerFacts::new(&parse(&inner, &cluster_key).expect("a whole frame"), &cluster_key);
//! let mut packet = vec![0; template.len()];
//! packet.extend_from_slice(&inner);
//! template.encap(&facts, &mut packet)?;
//!
//! // On the other node: decapsulate, check the sender, apply the ECN field.
//! let outer = parse(&packet, &cluster_key).expect("a whole packet");
//! let got = decap(&packet, &outer, ChecksumState::Unknown, &DecapRules::default())?;
//! assert_eq!(vteps_of_b.admit(&got)?.end, a_seen_by_b);
//! let frame = &mut packet[got.start as usize..got.end as usize];
//! ecn::apply(got.ecn, &mut frame[14..])?;
//! assert_eq!(frame, inner);
//! # fn etherparse_frame() -> Vec<u8> {
//! #     let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
//! #     let mut frame = Vec::new();
//! #     let builder = builder.ipv4([10, 0, 0, 1], [10, 0, 1, 1], 64).udp(1, 2);
//! #     builder.write(&mut frame, b"hello").expect("fits");
//! #     frame
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! If a UDP socket carries the tunnel, use [`template::Template::datagram`] and
//! [`decap::payload_vni`] instead of `encap` and `decap`.
#![forbid(unsafe_code)]

pub mod decap;
pub mod ecn;
pub mod header;
pub mod pmtu;
pub mod template;
pub mod vtep;
