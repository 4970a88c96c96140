//! Cluster DNS answers, compiled from Kubernetes Services: names by the Kubernetes DNS specification 1.1.0, as CoreDNS's
//! plugin `kubernetes` answers them.
//!
//! Sans-I/O: objects go in ([`facts`]), a [`Zone`] comes out, and [`answer()`] makes the datagram of an answer of the
//! datagram of a query, or says that it is another server's. No sockets, threads or clocks; no allocation for a query.
//! Needs nothing else of podswitch.
//!
//! ```
//! use std::sync::Arc;
//! use podswitch_dns::facts::ServiceFacts;
//! use podswitch_dns::{MAX_SIZE, Outcome, Rcode, Settings, Transport, Zone, answer};
//!
//! let mut zone = Zone::new(Settings::default())?;
//! let api = ServiceFacts::cluster_ips("shop", "api", ["10.96.0.7".parse()?]);
//! zone.upsert_service(Arc::new(api))?;
//! zone.set_synced(true);
//!
//! // Id 7, RD, one question: A of api.shop.svc.cluster.local.
//! let query = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03api\x04shop\x03svc\x07cluster\x05local\0\0\x01\0\x01";
//! let mut out = [0; MAX_SIZE];
//! let Outcome::Answered(it) = answer(&zone, query, Transport::Udp, 0, &mut out) else { panic!() };
//! assert_eq!(it.rcode, Rcode::NoError);
//! assert!(out[..it.len].ends_with(&[10, 96, 0, 7]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod answer;
mod bytes;
mod explain;
pub mod facts;
mod list;
mod lookup;
mod map;
mod name;
mod query;
pub mod record_type;
mod rule;
mod zone;

pub use answer::{
    Answer, Ignored, MAX_SIZE, MAX_TCP, MIN_SIZE, NotOurs, Outcome, Question, Rcode,
    SCHEMA_VERSION, Transport, answer,
};
pub use explain::{Explained, Record, Step, explain, query};
pub use name::{MAX_LABEL, MAX_NAME, Name, NameError, display_name};
pub use record_type::{type_name, type_number};
pub use rule::Rule;
pub use zone::{MAX_TTL, PodNames, Settings, Zone};
