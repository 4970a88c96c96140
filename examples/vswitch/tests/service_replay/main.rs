//! Services on the wire, named after what kube-proxy's own end-to-end tests check: manifests and
//! captures through `vswitch replay`, IPv4 and IPv6 alike. Ids such as S8 are those of the rules
//! that doc comments of the engine name too.

mod addresses;
mod changes;
mod endpoints;
mod errors;
mod outside;
mod packets;
mod play;
mod policies;
mod refused;
mod segments;
mod world;
