//! VXLAN (RFC 7348): header, encapsulation template and VTEP table of podswitch, usable alone.
//!
//! The crate works on plain byte slices. It opens no sockets, reads no clocks, allocates nothing
//! per packet, and knows neither policy nor ports.
//!
//! * [`header`]: the eight octets, and [`Vni`](header::Vni).
//! * [`template`]: outer headers built once and copied in front of each frame.
//! * [`mod@decap`]: from an outer packet to the inner frame.
//! * [`ecn`]: congestion marks through the tunnel (RFC 6040).
//! * [`vtep`]: who the tunnel ends are, and whom to believe.
//! * [`pmtu`]: path MTU from ICMP errors that quote tunnel packets.
//!
//! # A frame through a tunnel
//!
//! ```
//! use vxlan::decap::{self, DecapRules};
//! use vxlan::header::Vni;
//! use vxlan::template::{InnerFacts, Outer, SourcePort, Template};
//!
//! // When tables are compiled: the outer headers of one tunnel.
//! let vni = Vni::new(42).expect("24 bits");
//! let outer = Outer::new("192.0.2.1".parse()?, "192.0.2.2".parse()?, vni);
//! let template = Template::new(&outer)?;
//!
//! // Per packet: room for the headers in front of the inner frame, then one call.
//! let inner = [0xab; 60];
//! let facts = InnerFacts {
//!     source_port: SourcePort::from_hash(0x1234_5678_9abc_def0),
//!     traffic_class: 0,
//!     dont_fragment: true,
//!     tagged: false,
//!     gso: false,
//!     identification: 0,
//!     partial: None,
//! };
//! let mut packet = vec![0; template.len()];
//! packet.extend_from_slice(&inner);
//! template.encap(&facts, &mut packet)?;
//! assert_eq!(packet.len(), 20 + 8 + 8 + 60);
//!
//! // At the other end a UDP socket bound to port 4789 delivers what follows the UDP header.
//! let payload = &packet[20 + 8..];
//! assert_eq!(decap::payload_vni(payload, &DecapRules::default())?, vni);
//! assert_eq!(payload[vxlan::header::LEN..], inner);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod checksum;
pub mod decap;
pub mod ecn;
pub mod header;
pub mod pmtu;
pub mod template;
pub mod vtep;
