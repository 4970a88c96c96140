//! `vswitch replay` and `check` as programs see them: captures in, captures, reasons and sums out.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Output;

use etherparse::{Icmpv4Type, Icmpv6Type, NetHeaders, PacketHeaders, TransportHeader};
use podswitch_vswitch_testkit::{
    Folder, GATEWAY, NODE, X, X6, Y, Y6, fragments, frames, head, mac, pod, run, two_pods, udp,
    udp6,
};
use serde_json::Value;

type Frames = Vec<(f64, Vec<u8>)>;

/// A replay on two pods, and what it wrote.
struct Replayed {
    folder: Folder,
    output: Output,
}

impl Replayed {
    /// Replays one capture on `a/x`.
    fn of(frames: &Frames) -> Self {
        Self::with(&[("a/x", frames)], &[])
    }

    fn with(captures: &[(&str, &Frames)], more: &[&str]) -> Self {
        let folder = Folder::new();
        let manifests = folder.manifest("state", &two_pods());
        let mut arguments = vec!["replay".to_owned(), "--node".into(), "n1".into()];
        arguments.extend(["--manifests".into(), manifests, "--out".into(), folder.text("out")]);
        for (number, (port, frames)) in captures.iter().enumerate() {
            let path = folder.capture(&format!("in{number}.pcap"), frames);
            arguments.extend(["--in".into(), format!("{port}={path}")]);
        }
        arguments.extend(more.iter().map(|&text| text.to_owned()));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = run(&arguments);
        Self { folder, output }
    }

    /// What left a port.
    fn sent(&self, port: &str) -> Frames {
        frames(&self.folder.path("out").join(format!("{port}.pcap")))
    }

    fn drops(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.path("out/drops.jsonl")).expect("drops");
        text.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect()
    }

    /// Port, frame and reason of each drop.
    fn reasons(&self) -> Vec<(String, u64, String)> {
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let place = |drop: &Value| {
            (text(&drop["port"]), drop["frame"].as_u64().expect("a number"), text(&drop["reason"]))
        };
        self.drops().iter().map(place).collect()
    }

    fn summary(&self) -> Value {
        let text = fs::read_to_string(self.folder.path("out/summary.json")).expect("a summary");
        serde_json::from_str(&text).expect("JSON")
    }

    /// The program ended well, and every frame ended somewhere.
    #[track_caller]
    fn good(self, received: usize) -> Self {
        let errors = String::from_utf8_lossy(&self.output.stderr);
        assert_eq!(self.output.status.code(), Some(0), "{errors}");
        let summary = self.summary();
        let count = |key: &str| summary[key].as_u64().expect("a number") as usize;
        assert_eq!(count("received"), received);
        assert_eq!(count("received"), count("forwarded") + count("consumed") + count("dropped"));
        assert_eq!(count("dropped"), self.drops().len());
        let sent: usize = ["a_x", "a_y", "host", "uplink"].iter().map(|p| self.sent(p).len()).sum();
        assert_eq!(sent, count("forwarded") + count("originated") + count("copies"));
        self
    }
}

fn reason(port: &str, frame: u64, reason: &str) -> (String, u64, String) {
    (port.to_owned(), frame, reason.to_owned())
}

#[test]
fn pods_reach_each_other_one_hop_away() {
    let input = vec![(1.5, udp(X, Y, 64, b"four")), (2.0, udp6(X6, 2, Y6, 64, b"six"))];
    let replayed = Replayed::of(&input).good(2);
    let sent = replayed.sent("a_y");
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[0].0, 1.5);
    for ((_, frame), payload) in sent.iter().zip([&b"four"[..], b"six"]) {
        assert_eq!(frame[..12], [mac(Y), GATEWAY].concat());
        let headers = PacketHeaders::from_ethernet_slice(frame).expect("well formed");
        assert_eq!(headers.payload.slice(), payload);
        match headers.net {
            Some(NetHeaders::Ipv4(header, _)) => {
                assert_eq!(header.time_to_live, 63);
                assert_eq!(header.header_checksum, header.calc_header_checksum());
            }
            Some(NetHeaders::Ipv6(header, _)) => assert_eq!(header.hop_limit, 63),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_gateway_answers_arp_and_neighbour_discovery() {
    let mut request = [[0xff; 6], mac(X)].concat();
    request.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend_from_slice(&mac(X));
    request.extend_from_slice(&X.octets());
    request.extend_from_slice(&[0, 0, 0, 0, 0, 0, 169, 254, 1, 1]);
    let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 1];
    let target = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let option = [&[1, 1][..], &mac(X)].concat();
    let mut solicitation = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(X), [0x33, 0x33, 0xff, 0, 0, 1])
        .ipv6(X6.octets(), all_nodes, 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut solicitation, &[&target[..], &option].concat())
        .expect("it fits");
    let replayed = Replayed::of(&vec![(1.0, request), (2.0, solicitation)]).good(2);
    let answers = replayed.sent("a_x");
    assert_eq!(answers.len(), 2, "{:?}", replayed.drops());
    assert_eq!(answers[0].1[20..32], [&[0, 2][..], &GATEWAY, &[169, 254, 1, 1]].concat());
    let headers = PacketHeaders::from_ethernet_slice(&answers[1].1).expect("well formed");
    let Some(TransportHeader::Icmpv6(answer)) = headers.transport else { panic!("{headers:?}") };
    assert_eq!(answer.icmp_type.type_u8(), 136);
    assert_eq!(replayed.summary()["consumed"], 2);
    assert_eq!(replayed.summary()["originated"], 2);
}

#[test]
fn forged_senders_are_named() {
    let mut forged_mac = udp(X, Y, 64, b"");
    forged_mac[6..12].copy_from_slice(&mac(Y));
    let mut forged_ip = udp(Y, X, 64, b"");
    forged_ip[6..12].copy_from_slice(&mac(X));
    let mut forged_ip6 = udp6(Y6, 3, X6, 64, b"");
    forged_ip6[6..12].copy_from_slice(&mac(X));
    let mut tagged = udp(X, Y, 64, b"");
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    let input = [forged_mac, forged_ip, forged_ip6, tagged];
    let input = input.into_iter().map(|frame| (1.0, frame)).collect();
    let replayed = Replayed::of(&input).good(4);
    let expected = ["spoofed_mac", "spoofed_ip", "spoofed_ip", "vlan_from_pod"];
    for (drop, (number, expected)) in replayed.drops().iter().zip((1..).zip(expected)) {
        assert_eq!(drop["reason"], expected);
        assert_eq!(drop["class"], "spoof");
        assert_eq!(drop["frame"], number);
        assert_eq!(drop["port"], "a/x");
        assert_eq!(drop["time"], 1.0);
    }
}

#[test]
fn every_cut_of_a_frame_is_one_counted_drop() {
    let mut input = Frames::new();
    for whole in [udp(X, Y, 64, b"payload"), udp6(X6, 2, Y6, 64, b"payload")] {
        input.extend((0..whole.len()).map(|length| (1.0, whole[..length].to_vec())));
    }
    let replayed = Replayed::of(&input).good(input.len());
    assert!(replayed.drops().iter().all(|drop| drop["class"] == "malformed"));
    assert_eq!(replayed.drops().len(), input.len());
}

#[test]
fn fragments_leave_when_they_are_whole() {
    let whole = fragments(X, Y, 1, 3);
    let lacking = fragments(X, Y, 2, 3);
    let late = fragments(X, Y, 3, 2);
    let input = vec![
        (1.0, whole[2].clone()),
        (1.0, lacking[0].clone()),
        (1.1, whole[0].clone()),
        (1.2, lacking[2].clone()),
        (1.3, whole[1].clone()),
        // Long after the time that a datagram has.
        (90.0, lacking[1].clone()),
        (90.1, late[1].clone()),
    ];
    let replayed = Replayed::of(&input).good(7);
    let sent = replayed.sent("a_y");
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|(time, _)| (*time - 1.3).abs() < 1e-6));
    let expected = [
        reason("a/x", 2, "fragment_timeout"),
        reason("a/x", 4, "fragment_timeout"),
        reason("a/x", 6, "end_of_input"),
        reason("a/x", 7, "end_of_input"),
    ];
    assert_eq!(replayed.reasons(), expected);
    // The time of a drop is that of its frame.
    assert_eq!(replayed.drops()[1]["time"], 1.2);
}

#[test]
fn the_sender_is_told_of_a_ttl_used_up() {
    let input = vec![(1.0, udp(X, Y, 1, b"")), (2.0, udp6(X6, 2, Y6, 1, b""))];
    let replayed = Replayed::of(&input).good(2);
    let expected = [reason("a/x", 1, "ttl_exceeded"), reason("a/x", 2, "ttl_exceeded")];
    assert_eq!(replayed.reasons(), expected);
    let told = replayed.sent("a_x");
    let transport = |frame| PacketHeaders::from_ethernet_slice(frame).expect("good").transport;
    match (transport(&told[0].1), transport(&told[1].1)) {
        (Some(TransportHeader::Icmpv4(four)), Some(TransportHeader::Icmpv6(six))) => {
            assert!(matches!(four.icmp_type, Icmpv4Type::TimeExceeded(_)));
            assert!(matches!(six.icmp_type, Icmpv6Type::TimeExceeded(_)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_node_has_a_port_of_its_own() {
    let outside = Ipv4Addr::new(198, 51, 100, 1);
    let out = vec![(1.0, udp(X, outside, 64, b"out"))];
    let back = vec![(2.0, udp(NODE, X, 64, b"in"))];
    let uplink = vec![(3.0, udp(outside, X, 64, b"no Service"))];
    let replayed =
        Replayed::with(&[("a/x", &out), ("host", &back), ("uplink", &uplink)], &[]).good(3);
    assert_eq!(replayed.sent("host").len(), 1);
    assert_eq!(replayed.sent("host")[0].1[..12], [mac(NODE), GATEWAY].concat());
    assert_eq!(replayed.sent("a_x").len(), 1);
    assert_eq!(replayed.reasons(), [reason("uplink", 1, "not_for_us")]);
}

#[test]
fn states_are_swapped_in_time() {
    let folder = Folder::new();
    let only_x = folder.manifest("only-x", &[head(), pod("x", 2, "")].concat());
    let x =
        vec![(10.0, udp(X, Y, 64, b"")), (12.0, udp(X, Y, 64, b"")), (20.0, udp(X, Y, 64, b""))];
    let y = vec![(13.0, udp(Y, X, 64, b"")), (21.0, udp(Y, X, 64, b""))];
    let swaps = [format!("1.5={only_x}"), format!("8={}", folder.manifest("two", &two_pods()))];
    let never = format!("1000={only_x}");
    let more = ["--at", &never, "--at", &swaps[1], "--at", &swaps[0]];
    let replayed = Replayed::with(&[("a/x", &x), ("a/y", &y)], &more).good(5);
    let expected = [reason("a/x", 2, "unknown_pod"), reason("a/y", 1, "endpoint_not_ready")];
    assert_eq!(replayed.reasons(), expected);
    assert!(String::from_utf8_lossy(&replayed.output.stderr).contains("1000 seconds"));
}

#[test]
fn captures_are_merged_by_time_and_option() {
    let mark = |text: &str| udp(X, Y, 64, text.as_bytes());
    // The second frame's clock was set back: its time is that of the first.
    let first = vec![(5.0, mark("a5")), (3.0, mark("a3")), (6.0, mark("a6"))];
    let second = vec![(4.0, mark("b4")), (5.0, mark("b5")), (7.0, mark("b7"))];
    let replayed = Replayed::with(&[("a/x", &first), ("a/x", &second)], &[]).good(6);
    let sent = replayed.sent("a_y");
    let texts: Vec<_> =
        sent.iter().map(|(_, f)| String::from_utf8_lossy(&f[42..]).into_owned()).collect();
    assert_eq!(texts, ["b4", "a5", "a3", "b5", "a6", "b7"]);
    assert!(sent.is_sorted_by_key(|(time, _)| *time));
    let backwards = vec![(5.0, mark("")), (3.0, udp(X, Y, 1, b""))];
    let replayed = Replayed::of(&backwards).good(2);
    assert_eq!(replayed.drops()[0]["time"], 5.0);
}

/// A datagram of `a/x`, and the answer of `a/y` that its port is closed, so many seconds later.
fn error_after(seconds: f64) -> Replayed {
    let sent = udp(X, Y, 64, b"anybody there?");
    let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
    // As it arrived: one hop away.
    let mut quoted = udp(X, Y, 63, b"anybody there?");
    message.append(&mut quoted.split_off(14));
    let mut error = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(Y), GATEWAY)
        .ipv4(Y.octets(), X.octets(), 64)
        .icmpv4_raw(3, 3, [0; 4])
        .write(&mut error, &message[8..])
        .expect("it fits");
    Replayed::with(&[("a/x", &vec![(1.0, sent)]), ("a/y", &vec![(1.0 + seconds, error)])], &[])
        .good(2)
}

#[test]
fn connections_end_between_frames() {
    assert_eq!(error_after(1.0).sent("a_x").len(), 1);
    let late = error_after(86_400.0);
    assert_eq!(late.reasons(), [reason("a/y", 1, "icmp_unrelated")]);
}

/// Frames as a bad neighbour makes them: good ones with bytes changed, cut and grown.
fn bad_neighbour(count: usize) -> Frames {
    let mut state = 7u64;
    let mut random = move |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let good = [
        udp(X, Y, 64, &[7; 40]),
        udp6(X6, 2, Y6, 64, &[7; 40]),
        udp(X, Ipv4Addr::new(169, 254, 1, 1), 64, b""),
        fragments(X, Y, 9, 2).remove(0),
        fragments(X, Y, 9, 2).remove(1),
    ];
    let mut time = 1.0;
    let mut make = |_| {
        let mut frame = good[random(good.len())].clone();
        for _ in 0..random(4) {
            let at = random(frame.len());
            frame[at] = random(256) as u8;
        }
        match random(8) {
            0 => frame.truncate(random(frame.len())),
            1 => frame.extend((0..random(3000)).map(|n| n as u8)),
            _ => {}
        }
        time += random(1000) as f64 / 500.0;
        (time, frame)
    };
    (0..count).map(&mut make).collect()
}

#[test]
fn the_same_input_gives_the_same_output() {
    let input = bad_neighbour(3000);
    let runs = [(); 2].map(|()| Replayed::of(&input).good(input.len()));
    let files = ["a_x.pcap", "a_y.pcap", "host.pcap", "uplink.pcap", "drops.jsonl", "summary.json"];
    for file in files {
        let [first, second] =
            runs.each_ref().map(|r| fs::read(r.folder.path("out").join(file)).expect("a file"));
        assert!(first == second, "{file} differs");
    }
    assert!(runs[0].summary()["drops"].as_object().expect("an object").len() > 10);
}

#[test]
fn frames_beyond_all_size_are_dropped() {
    let input = vec![(1.0, vec![0; 70_000]), (2.0, udp(X, Y, 64, b"")), (3.0, Vec::new())];
    let replayed = Replayed::of(&input).good(3);
    let expected = [reason("a/x", 1, "frame_too_long"), reason("a/x", 3, "ethernet_truncated")];
    assert_eq!(replayed.reasons(), expected);
}

#[test]
fn years_between_frames_take_no_time() {
    let year = 365.25 * 86_400.0;
    let input = (0..40).map(|n| (f64::from(n) * year, udp(X, Y, 64, b""))).collect();
    assert_eq!(Replayed::of(&input).good(40).sent("a_y").len(), 40);
}

/// Exit status of a replay of one file.
fn status_of(bytes: &[u8], more: &[&str]) -> (Option<i32>, String) {
    let folder = Folder::new();
    let manifests = folder.manifest("state", &two_pods());
    fs::write(folder.path("in.pcap"), bytes).expect("a file");
    let (input, out) = (format!("a/x={}", folder.text("in.pcap")), folder.text("out"));
    let mut arguments = vec!["replay", "--node", "n1", "--manifests", &manifests];
    arguments.extend(["--in", &input, "--out", &out]);
    arguments.extend(more);
    let output = run(&arguments);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn captures_that_are_none_are_told_of() {
    let folder = Folder::new();
    let path = folder.capture("good.pcap", &[(1.0, udp(X, Y, 64, b"")), (2.0, udp(X, Y, 64, b""))]);
    let good = fs::read(path).expect("a file");
    assert_eq!(status_of(&good, &[]).0, Some(0));
    assert_eq!(status_of(b"no capture at all", &[]).0, Some(2));
    assert_eq!(status_of(b"", &[]).0, Some(2));
    // Cut off within its last frame: what is before it is good.
    let (status, told) = status_of(&good[..good.len() - 5], &[]);
    assert_eq!((status, told.contains("after frame 1")), (Some(0), true), "{told}");
    // A length that no frame has.
    let mut absurd = good.clone();
    absurd[24 + 8..24 + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(status_of(&absurd, &[]).0, Some(2));
    // Frames of another link.
    let mut raw = good;
    raw[20..24].copy_from_slice(&101u32.to_le_bytes());
    assert_eq!(status_of(&raw, &[]).0, Some(2));
    assert_eq!(status_of(&raw, &["--as-ethernet"]).0, Some(0));
}

#[test]
fn bad_usage_is_told_by_the_exit_status() {
    let folder = Folder::new();
    let good = folder.manifest("good", &two_pods());
    let taken = folder.manifest("taken", &[head(), pod("x", 2, ""), pod("z", 2, "")].concat());
    let input = format!("a/x={}", folder.capture("in.pcap", &[]));
    let out = folder.text("out");
    let replay = |node: &str, manifests: &str, input: &str| {
        let arguments = ["--node", node, "--manifests", manifests, "--in", input, "--out", &out];
        run(&[&["replay"], &arguments[..]].concat()).status.code()
    };
    assert_eq!(replay("n1", &good, &input), Some(0));
    // One object holds up no other: of two pods with one address one is left out.
    assert_eq!(replay("n1", &taken, &input), Some(0));
    assert_eq!(replay("n1", "/nowhere", &input), Some(2));
    assert_eq!(replay("n2", &good, &input), Some(2));
    assert_eq!(replay("n1", &good, "a/nobody=x"), Some(2));
    assert_eq!(replay("n1", &good, "no port"), Some(2));
    assert_eq!(run(&["replay"]).status.code(), Some(2));
    assert_eq!(run(&["replay", "--help"]).status.code(), Some(0));
}

#[test]
fn check_tells_what_is_refused() {
    let folder = Folder::new();
    let good = folder.manifest("good", &two_pods());
    let wrong = [head(), pod("x", 2, ""), pod("z", 2, "").replace("10.1.0.2", "10.1.0.2222")];
    let wrong = folder.manifest("wrong", &wrong.concat());
    let output = run(&["check", "--manifests", &good, "--json"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"{\"refused\":[]}\n");
    let output = run(&["--json", "check", "--manifests", &wrong]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let refused = report["refused"].as_array().expect("a list");
    assert_eq!(refused[0]["object"], "Pod/a/z");
    assert_eq!(refused[0]["field"], "status.podIPs[0].ip");
    assert!(refused[0]["file"].as_str().expect("text").ends_with("state.yaml"));
    assert!(refused[0]["reason"].as_str().expect("text").contains("10.1.0.2222"));
    assert_eq!(refused[0]["action"], "left_out");
    assert_eq!(run(&["check", "--manifests", &folder.text("nowhere")]).status.code(), Some(2));
    assert_eq!(run(&["check"]).status.code(), Some(2));
}
