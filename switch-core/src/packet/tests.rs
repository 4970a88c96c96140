use super::*;

fn packet() -> Packet {
    let mut packet = Packet::with_capacity(200);
    packet.fill(&[1, 2, 3, 4]);
    packet
}

#[test]
fn frames_begin_on_a_cache_line_in_any_buffer() {
    for capacity in [0, 1, 63, 64, 1000, Pool::SMALL, Pool::LARGE] {
        let packet = Packet::with_capacity(capacity);
        assert_eq!(packet.bytes().as_ptr().addr() % 64, 0);
        assert_eq!((packet.headroom(), packet.capacity()), (HEADROOM, capacity));
        assert_eq!(packet.buffer_len(), HEADROOM + capacity);
    }
}

#[test]
fn headers_are_pushed_and_pulled() {
    let mut packet = packet();
    packet.push_front(HEADROOM).fill(9);
    assert_eq!((packet.headroom(), packet.len()), (0, HEADROOM + 4));
    assert_eq!(packet.capacity(), HEADROOM + 200);
    packet.pull_front(HEADROOM + 1);
    assert_eq!(packet.bytes(), [2, 3, 4]);
    assert_eq!((packet.headroom(), packet.capacity()), (HEADROOM + 1, 199));
    assert_eq!(packet.spare_mut().len(), 199);
    packet.truncate(1);
    packet.truncate(50);
    assert_eq!(packet.bytes(), [2]);
    packet.mark = 7;
    packet.offload.csum_partial = true;
    packet.reset();
    assert!(packet.is_empty() && packet.mark == 0 && !packet.offload.csum_partial);
    assert_eq!((packet.headroom(), packet.capacity()), (HEADROOM, 200));
}

#[test]
#[should_panic(expected = "headroom exhausted")]
fn headroom_is_limited() {
    packet().push_front(HEADROOM + 1);
}

#[test]
#[should_panic(expected = "longer than its buffer")]
fn a_frame_stays_in_its_buffer() {
    packet().set_len(201);
}

#[test]
#[should_panic(expected = "out of range")]
fn copies_stay_in_the_buffer() {
    packet().fill(&[0; 201]);
}

#[test]
fn a_frame_is_not_printed_whole() {
    let text = format!("{:?}", packet());
    assert!(text.starts_with("Packet { len: 4, headroom: 128, offload: Offload {"), "{text}");
}
