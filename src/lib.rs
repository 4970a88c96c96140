//! podswitch: a user-space packet switch for Kubernetes pod networks.
pub use kubernetes;
pub use policy;
pub use switch_core;
pub use vxlan;
pub use wire;
