//! The API server as the source: objects by list and watch, the status of Ingresses by the holder
//! of a Lease. Without the feature `kubernetes` there is nothing to test, and the test says so.
#![allow(clippy::disallowed_types, reason = "threads of a test that wait for each other")]

#[cfg(feature = "kubernetes")]
mod follow;
#[cfg(feature = "kubernetes")]
mod gateway;
#[cfg(feature = "kubernetes")]
mod server;

#[cfg(not(feature = "kubernetes"))]
#[test]
fn the_api_server_as_the_source() {
    let reason = "needs --features podswitch-ingress-controller/kubernetes";
    podswitch_testkit::privilege::skip(&podswitch_testkit::test_name!(), reason);
}
