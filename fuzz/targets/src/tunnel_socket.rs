//! Any bytes as what a tunnel's UDP socket receives, with any segment size, and as what a pod sends
//! through a peer that passes GSO packets whole.

pub(crate) fn run(input: &[u8]) {
    podswitch_linux::port::fuzz::receive(input);
}
