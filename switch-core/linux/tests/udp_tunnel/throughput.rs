//! The throughput of one TCP stream, compared with the kernel's bridge and VXLAN device. It checks
//! nothing: run it by name, in release, with iperf3 installed.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use podswitch_linux::NetNs;

use crate::world::{Near, POD, Tunnel, Underlay, kernel_pod};
use podswitch_testkit::net;

/// Processor time in seconds of this process, whose threads are the switches, and of its child
/// processes, the ends of the stream. The kernel's work for them is included.
fn cpu() -> [f64; 2] {
    [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN].map(|who| {
        // SAFETY: all zero is a valid `rusage`, a struct of integers.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one `rusage`.
        assert_eq!(unsafe { libc::getrusage(who, &raw mut usage) }, 0);
        let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
        seconds(usage.ru_utime) + seconds(usage.ru_stime)
    })
}

/// One stream from one pod to the other.
struct Stream {
    /// Gbit/s.
    rate: f64,
    /// Nanoseconds of processor time per KiB: of the switches, and of the stream's ends.
    cost: [f64; 2],
}

fn iperf(from: &NetNs, to: &NetNs, address: &str, seconds: &str) -> Stream {
    let before = cpu();
    let mut server = to
        .command("iperf3")
        .args(["-s", "-1", "-B", address])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_millis(300));
    let output =
        from.command("iperf3").args(["-c", address, "-t", seconds, "-f", "m"]).output().unwrap();
    let _ = server.kill();
    let _ = server.wait();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if std::env::var_os("VERBOSE").is_some() {
        println!("{text}");
    }
    let line = text.lines().find(|line| line.ends_with("receiver")).unwrap_or_default();
    let mut words = line.split_whitespace();
    let rate = words.position(|word| word == "Mbits/sec").and_then(|at| {
        line.split_whitespace().nth(at - 1).and_then(|word| word.parse::<f64>().ok())
    });
    let rate = rate.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    let after = cpu();
    let kib = rate * 1e6 / 8.0 / 1024.0 * seconds.parse::<f64>().unwrap();
    let cost = [0, 1].map(|n| (after[n] - before[n]) * 1e9 / kib);
    Stream { rate: rate / 1000.0, cost }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "a measurement"]
fn throughput() {
    let var = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
    let rounds: usize = var("ROUNDS", "3").parse().unwrap();
    let seconds = var("SECONDS_EACH", "2");
    let v6 = var("FAMILY", "4") == "6";
    let tunnel = Tunnel { v6, vni: 1, port: 4789, tunnel_gso: var("WHOLE", "1") == "1" };
    let worlds: Vec<_> = (0..5).map(|_| Underlay::new()).collect();
    let [kernel, ours, both, raw, raws] = &worlds[..] else { unreachable!() };
    let pods = (kernel_pod(&kernel.near, &tunnel, false), kernel_pod(&kernel.far, &tunnel, true));
    let (near, far) = (Near::new(&ours.near, &tunnel), kernel_pod(&ours.far, &tunnel, true));
    let two = (Near::new(&both.near, &tunnel), Near::far(&both.far, &tunnel));
    let (raw_near, raw_far) = (Near::raw(raw, &tunnel, false), kernel_pod(&raw.far, &tunnel, true));
    let raw_two = (Near::raw(raws, &tunnel, false), Near::raw(raws, &tunnel, true));
    if var("CUT", "") == "1" {
        // The underlay carries no GSO packets: packets from the nodes are segmented before it.
        for world in &worlds {
            for node in [&world.near, &world.far] {
                net::set_tunnel_offloads(node, "u0", false);
            }
        }
    }
    let (a, b) = (POD[0][usize::from(v6)], POD[1][usize::from(v6)]);
    let paths = [
        ("kernel to kernel", &pods.0, &pods.1, b),
        ("UDP socket to kernel", &near.pod, &far, b),
        ("kernel to UDP socket", &far, &near.pod, a),
        ("UDP socket to UDP socket", &two.0.pod, &two.1.pod, b),
        ("AF_PACKET to kernel", &raw_near.pod, &raw_far, b),
        ("kernel to AF_PACKET", &raw_far, &raw_near.pod, a),
        ("AF_PACKET to AF_PACKET", &raw_two.0.pod, &raw_two.1.pod, b),
    ];
    let wanted = var("PATHS", "0123456");
    let mut results: Vec<Vec<Stream>> = paths.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for (n, (_, from, to, address)) in paths.iter().enumerate() {
            if wanted.contains(&n.to_string()) {
                results[n].push(iperf(from, to, address, &seconds));
            }
        }
        let load = std::fs::read_to_string("/proc/loadavg").unwrap();
        let last: Vec<_> = results.iter().map(|r| r.last().map_or(0.0, |s| s.rate)).collect();
        println!("round {round}: {last:.2?} load {}", load.trim());
    }
    let of = |n: usize, value: fn(&Stream) -> f64| {
        median(&mut results[n].iter().map(value).collect::<Vec<_>>())
    };
    let whole = |s: &Stream| s.cost[0] + s.cost[1];
    for (n, (name, ..)) in paths.iter().enumerate().filter(|(n, _)| !results[*n].is_empty()) {
        // Each compared with the kernel's figure of the same round.
        let pairs = || results[n].iter().zip(&results[0]);
        let mut rates: Vec<f64> = pairs().map(|(s, k)| s.rate / k.rate).collect();
        let mut costs: Vec<f64> = pairs().map(|(s, k)| whole(s) / whole(k)).collect();
        let (rate, ours, ends) = (of(n, |s| s.rate), of(n, |s| s.cost[0]), of(n, |s| s.cost[1]));
        print!("{name}: {rate:.2} Gbit/s; ns/KiB: ours {ours:.0}, ends {ends:.0}");
        match rates.is_empty() {
            true => println!(),
            false => println!(
                "; of the kernel's {:.2}, cost {:.2}",
                median(&mut rates),
                median(&mut costs)
            ),
        }
    }
}
