//! How fast one TCP stream is, beside the kernel's bridge and VXLAN device. Not a test of anything:
//! run it by name, in release, with iperf3 installed.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use switch_core::host::NetNs;

use crate::world::{Near, POD, Tunnel, Underlay, kernel_pod};

/// Gbit/s of one stream from one pod to the other.
fn iperf(from: &NetNs, to: &NetNs, address: &str, seconds: &str) -> f64 {
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
    rate.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr))) / 1000.0
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
    let tunnel = Tunnel { v6, vni: 1, port: 4789 };
    let ours = Underlay::new();
    let (near, far) = (Near::new(&ours.near, &tunnel), kernel_pod(&ours.far, &tunnel, true));
    let kernel = Underlay::new();
    let pods = (kernel_pod(&kernel.near, &tunnel, false), kernel_pod(&kernel.far, &tunnel, true));
    let switches = Underlay::new();
    let first = Near::new(&switches.near, &tunnel);
    let back = Tunnel { v6, ..tunnel };
    let second = Near::far(&switches.far, &back);
    let (a, b) = (POD[0][usize::from(v6)], POD[1][usize::from(v6)]);
    let mut results: [Vec<f64>; 4] = Default::default();
    let paths = [
        (&pods.0, &pods.1, b),
        (&near.pod, &far, b),
        (&far, &near.pod, a),
        (&first.pod, &second.pod, b),
    ];
    let wanted = var("PATHS", "0123");
    for round in 0..rounds {
        for (n, (from, to, address)) in paths.iter().enumerate() {
            let skip = !wanted.contains(&n.to_string());
            results[n].push(if skip { f64::NAN } else { iperf(from, to, address, &seconds) });
        }
        let load = std::fs::read_to_string("/proc/loadavg").unwrap();
        let last: Vec<f64> = results.iter().map(|r| r[round]).collect();
        println!("round {round}: {last:.2?} load {}", load.trim());
    }
    let names = ["kernel to kernel", "ours to kernel", "kernel to ours", "ours to ours"];
    let whole = median(&mut results[0].clone());
    for (name, values) in names.iter().zip(&mut results) {
        let mid = median(values);
        println!("{name}: {mid:.2} Gbit/s, {:.2} of the kernel's", mid / whole);
    }
}
