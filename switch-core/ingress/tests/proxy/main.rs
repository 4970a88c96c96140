//! The proxy through real sockets on loopback.
#![cfg(feature = "proxy")]

mod annotations;
mod bad_input;
mod conformance;
mod gateway;
mod lab;
mod slow_clients;
mod tls;
mod upgrade;
