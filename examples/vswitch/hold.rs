//! `hold`: keeps a switch's devices open while it is away.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use podswitch_linux::confine;
use podswitch_linux::handover::Channel;
use podswitch_node::hold::{HoldEnd, HoldOptions, Holder};

use crate::failure::Failure;
use crate::run::{HOLD_FOR, RunDir, raise_descriptor_limit, seconds};
use crate::signals::Signals;
use crate::{Done, print};

/// Time between two tries to be the holder while another one is.
const PAUSE: Duration = Duration::from_millis(200);
/// Of all processes the last one that the kernel ends for lack of memory: without it a switch that was ended cannot go on.
const OOM_SCORE: &str = "-1000";

/// Keep a switch's devices open, so that pods keep their link and what waits in its queues while the switch is away.
///
/// A switch with the same run directory gives it duplicates of its open devices. After a crash or `kill -9` the next `run`
/// goes on with them. It uses none of them, never forwards, and has no privileges. `run --hold start`, which is the default,
/// starts a holder by itself; use this command where that one would end with the switch, as in a container of its own
/// beside the switch's, which runs with `--hold use`.
///
/// Runs until SIGTERM or SIGINT. While another holder serves the run directory, it waits for that one's end.
///
/// Exit status: 0 after a stop, 1 the run directory cannot be used, 2 bad usage.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The switch's run directory.
    #[arg(long, value_name = "DIR", required_unless_present = "started")]
    run_dir: Option<PathBuf>,
    /// How long devices are kept when the switch has died and none is started.
    #[arg(long, value_name = "SECONDS", default_value = HOLD_FOR, value_parser = seconds)]
    hold_for: Duration,
    /// `run` has started it, and is at the other end of standard input.
    #[arg(long, hide = true)]
    started: bool,
}

pub(crate) fn run(args: &Args) -> Done {
    raise_descriptor_limit();
    // Without the privilege it is as likely to be ended as its parent.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let signals = Signals::listen()?;
    confine::holder().inspect_err(|error| print::note(format_args!("{error}"))).ok();
    let mut options = HoldOptions { bound: args.hold_for, stays: !args.started };
    let holder = match &args.run_dir {
        Some(run_dir) if !args.started => bind(run_dir, &signals)?,
        _ => {
            options.stays = false;
            started()?
        }
    };
    let Some(mut holder) = holder else { return Ok(()) };
    loop {
        let served = holder.serve(options, signals.as_fd());
        let end = served.map_err(|error| Failure::Setup(format!("the holder: {error}")))?;
        signals.wait(Duration::ZERO, None);
        if end != HoldEnd::Stopped || signals.stopped() {
            return Ok(());
        }
    }
}

/// Serves the process that has started this one.
fn started() -> Result<Option<Holder>, Failure> {
    // It survives the other one, and signals to its group.
    let _ = rustix::process::setsid();
    let failed = |error: &dyn std::fmt::Display| Failure::Setup(format!("the holder: {error}"));
    // A second descriptor of it: the other end is closed with this process.
    let input: OwnedFd = io::stdin().as_fd().try_clone_to_owned().map_err(|e| failed(&e))?;
    Holder::started_with(Channel::from(input), confine::holder_calls).map_err(|e| failed(&e))
}

/// Serves any switch of a run directory.
fn bind(run_dir: &Path, signals: &Signals) -> Result<Option<Holder>, Failure> {
    RunDir::create(run_dir)?;
    let mut said = false;
    loop {
        match Holder::bind(run_dir) {
            Ok(holder) => {
                confine::holder_calls().inspect_err(|error| print::note(error)).ok();
                print::line(format_args!("holding run_dir={}", run_dir.display()));
                return Ok(Some(holder));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !std::mem::replace(&mut said, true) {
                    print::note("another holder serves the run directory: waiting for its end");
                }
            }
            Err(error) => {
                let path = run_dir.display();
                return Err(Failure::Setup(format!("run directory {path}: {error}")));
            }
        }
        signals.wait(PAUSE, None);
        if signals.stopped() {
            return Ok(None);
        }
    }
}
