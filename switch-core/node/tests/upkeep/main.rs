//! What the switch set up and somebody takes away is put back: in pods, on the node, in the tunnel.

mod node;
mod pods;
mod underlay;
mod world;
