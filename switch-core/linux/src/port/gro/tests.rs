use podswitch_core::packet::PoolConfig;

use super::*;

/// Each datagram is a frame of its own, or one that is counted as lost.
#[test]
fn what_has_no_buffer_is_counted() {
    let from: SocketAddr = "192.0.2.2:50000".parse().unwrap();
    let outer = Outer::new(from, "192.0.2.1:4789".parse().unwrap(), 0);
    for (len, datagrams) in [(401, 5), (450, 5), (500, 5), (101, 2)] {
        for buffers in 0..6 {
            let mut pool = Pool::new(PoolConfig { small: buffers, large: 0 });
            let mut joined = Packet::with_capacity(Pool::LARGE);
            // No TCP inside, so nothing is put together.
            joined.fill(&vec![0x55; len]);
            let mut frames = Vec::new();
            let lost = outer.split(joined, 100, &mut pool, &mut |packet| frames.push(packet));
            let whole = datagrams.min(1 + buffers);
            assert_eq!(frames.len(), whole, "{len} bytes, {buffers} buffers");
            assert_eq!(lost as usize, datagrams - whole, "{len} bytes, {buffers} buffers");
        }
    }
}
