//! `replay`: runs the engine on captures, in virtual time, without privileges.
//!
//! One worker, polled explicitly, a fixed hash key, one frame at a time: the same input gives the
//! same output on every run.

mod input;
mod output;
mod port;
mod setup;
mod switch;
mod timeline;

use std::path::PathBuf;

use podswitch_core::time::Clock;

use crate::cluster::ClusterArgs;
use crate::failure::Failure;
use crate::{Done, print};
use input::{Merged, Source};
use output::Output;
use setup::{Setup, Swap};
use switch::Switch;

/// Run the engine on captures, without privileges.
///
/// Every pod of the node has a port named `namespace/pod`, whether attached or not. In addition
/// there are `host`, the node's own port, and `uplink`, the underlay. Frames sent by a port are
/// written to its capture (`namespace_pod.pcap`, `host.pcap`, `uplink.pcap`), the reason for every
/// dropped frame to `drops.jsonl`, and the totals to `summary.json`.
///
/// Time is that of the captures and never runs back. A pod sends from its MAC address to the
/// gateway's (ee:ee:ee:ee:ee:ee). The node's end of `host` has the node's MAC address: `0a:58` and
/// its InternalIP, or the Node annotation `podswitch.io/mac`. All ports have an MTU of 1500.
/// `uplink` is raw Ethernet: it carries tunnel packets from and to other nodes, and traffic between
/// outside clients and Services. MAC addresses on it are known without ARP; they are derived in the
/// same way as the node's.
///
/// Exit status: 0 the replay completed, whatever was dropped; 1 a configuration is refused; 2 bad
/// usage, or a capture or manifests cannot be read.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// A manifest, or a folder of manifests: the initial configuration.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Change the configuration this many seconds after the first frame. Can be repeated.
    #[arg(long, value_name = "SECONDS=DIR", value_parser = Swap::parse)]
    at: Vec<Swap>,
    /// The node whose switch this is.
    #[arg(long, value_name = "NAME")]
    node: String,
    /// The input of a port: a capture, pcap or pcapng. Can be repeated. Captures are merged by
    /// time; frames with equal times are in the order of these options.
    #[arg(long = "in", value_name = "PORT=FILE", required = true, value_parser = Source::parse)]
    inputs: Vec<Source>,
    /// Output folder; created if missing.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Treat captured data as Ethernet frames, whatever the capture's link type.
    #[arg(long)]
    as_ethernet: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Frames between two progress reports.
const PROGRESS: u64 = 1 << 14;

pub(crate) fn run(args: &Args, json: bool) -> Done {
    let setup = Setup::load(&args.manifests, &args.at, &args.node, &args.cluster.options(false))?;
    let mut input = Merged::open(&args.inputs, &setup, args.as_ethernet)?;
    let mut switch = Switch::new(&setup)?;
    let mut output = Output::create(&args.out, setup.ports())?;
    let clock = Clock::start();
    let mut reported = clock.now();
    let mut frames = 0u64;
    while let Some(frame) = input.next()? {
        switch.take(frame, &mut output)?;
        frames += 1;
        if frames.is_multiple_of(PROGRESS) && clock.now().since(reported).as_secs() >= 1 {
            reported = clock.now();
            print::progress(format_args!("{frames} frames"));
        }
    }
    print::progress("");
    switch.finish(&mut output)?;
    for time in switch.swaps_to_come() {
        print::note(format_args!("the input ended before the swap at {time} seconds"));
    }
    let summary = switch.summary(&setup);
    output.finish(&summary)?;
    if json {
        print::json(&summary);
    } else {
        print::line(&summary);
        print::line(format_args!("written to {}", args.out.display()));
    }
    let faults = input.faults();
    if faults.is_empty() { Ok(()) } else { Err(Failure::Input(faults.join("\nvswitch: "))) }
}
