//! The proxy through real sockets on loopback.
#![cfg(feature = "proxy")]

mod annotations;
mod bad_input;
mod conformance;
mod http2;
mod lab;
mod tls;
mod upgrade;
