//! `demo`: the main functions on one machine, without set-up. Creates two nodes, their pods and an
//! outside host in network namespaces, runs a switch for each node, connected by the tunnel, sends
//! real traffic between real sockets, reports what was checked and measured, and removes
//! everything.
//!
//! The namespaces have no names: they last as long as this process, however it ends. Only `--keep`
//! gives them names, which are removed unless the demo completes.

mod checks;
mod frames;
mod measure;
mod report;
mod servers;
mod sockets;
mod world;

use podswitch_linux::port::tap;
use podswitch_linux::userns::{self, Privilege};

use crate::failure::Failure;
use crate::signals::Signals;
use crate::{Done, print};
use report::Report;
use world::World;

/// Show the switch working on this machine, and check it.
///
/// Creates two nodes with pods on TAP and AF_PACKET ports, a network between the nodes, and a host
/// outside, all in network namespaces; runs a switch for each node, connected by a VXLAN tunnel;
/// and sends IPv4 and IPv6 traffic between real sockets, under policies, through Services, and by
/// name; with the feature `ingress` by HTTPS through a proxy that is a pod, too. Needs root, or a
/// system that lets ordinary users create user namespaces. Takes about thirty seconds.
///
/// Exit status: 0 all checks passed, 1 one failed or something cannot be set up.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Keep the namespaces at the end, with names, for inspection.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    // Before any thread starts: this may re-execute the program.
    let privilege = userns::ensure_privilege()?;
    // Without --keep, a signal leaves nothing behind.
    let signals = args.keep.then(Signals::listen).transpose()?;
    let mut report = Report::new(json, signals);
    if privilege == Privilege::UserNamespace {
        report.progress("not root: working in a user namespace");
    }
    let with_tap = match tap::is_available() {
        Ok(()) => true,
        Err(error) => {
            report.progress(format_args!("no TAP here ({error}): veth and AF_PACKET only"));
            false
        }
    };
    let mut world = World::make(with_tap, args.keep)?;
    report.progress(format_args!("made {world}"));
    let result = examine(&mut world, &mut report);
    let kept = world.end(args.keep && result.is_ok())?;
    result?;
    report.summary();
    if let Some(kept) = kept {
        print::note(kept);
    }
    if report.is_good() { Ok(()) } else { Err(Failure::Checked) }
}

/// All checks and measurements.
fn examine(world: &mut World, report: &mut Report) -> Done {
    checks::connectivity(world, report)?;
    checks::wire_format(world, report)?;
    checks::packets(world, report)?;
    checks::policy(world, report)?;
    checks::services(world, report)?;
    checks::names(world, report)?;
    #[cfg(feature = "ingress")]
    checks::https(world, report)?;
    #[cfg(not(feature = "ingress"))]
    report.progress("no HTTPS host: it needs a build with --features ingress");
    checks::spoofing(world, report)?;
    checks::tunnel_spoofing(world, report)?;
    checks::attachment(world, report)?;
    measure::idle(report)?;
    measure::table(world, report)?;
    checks::narrow_underlay(world, report)?;
    checks::sums(world, report)
}
