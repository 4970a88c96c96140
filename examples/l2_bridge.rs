//! A learning switch over the given interfaces: `l2_bridge eth1 eth2 veth3`. Needs root (or a user
//! namespace); ends with Ctrl-C.
//!
//! `cargo run --release --example l2_bridge -- IF IF…`

use std::sync::Arc;
use std::time::Duration;

use podswitch::core::config::{BridgeDomain, Config, PortConfig, PortRole, Vlans};
use podswitch::core::control::{ControlPlane, Options};
use podswitch::linux::NetNs;
use podswitch::linux::port::af_packet::{PacketConfig, PacketDevice};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    if names.len() < 2 {
        eprintln!("usage: l2_bridge INTERFACE INTERFACE…");
        std::process::exit(2);
    }
    let here = NetNs::current()?;
    let mut control = ControlPlane::new(Options::default());
    control.set_workers(1)?;
    let domain: Arc<str> = "bridge".into();
    let bridge = BridgeDomain { name: domain.clone(), ageing_secs: 300, learn_limit: 4096 };
    let mut config = Config { bridges: vec![Arc::new(bridge)], ..Config::default() };
    for name in &names {
        let device = PacketDevice::new(&here, name, PacketConfig::default())?;
        let port = control.attach(Box::new(device))?;
        let role = PortRole::Bridge { domain: domain.clone(), vlans: Vlans::default() };
        config.ports.push(PortConfig { port, role });
    }
    control.apply(&config)?;
    println!("bridging {}", names.join(", "));
    let mut before = (0, 0);
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let counters = control.workers().map(|w| &w.counters);
        let now = counters.fold((0, 0), |(f, d), c| (f + c.forwarded.get(), d + c.dropped_total()));
        if now != before {
            println!("{} frames forwarded, {} dropped", now.0, now.1);
            before = now;
        }
    }
}
