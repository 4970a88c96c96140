//! The holder of `run`: a process that keeps the devices when this one dies.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use podswitch_linux::handover::{Channel, Inherited};
use podswitch_node::hold::{HOLD_SOCKET, HoldError, HolderLink, end_holder};

use super::flags;

/// Default of `--hold-for`, in seconds.
pub(crate) const HOLD_FOR: &str = "300";

/// `--hold`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Start,
    Use,
    Off,
}

#[derive(clap::Args, Debug)]
pub(super) struct HoldFlags {
    /// Whether another process keeps the devices open, so that pods keep their link and queues when this one crashes:
    /// `start` such a holder, unless one runs; `use` one that runs, started by `vswitch hold`; or `off`. Without a run
    /// directory there is none.
    #[arg(long, value_name = "start|use|off", default_value = "start", value_parser = hold)]
    hold: Hold,
    /// How long the holder that this process starts keeps the devices when no switch comes after a crash.
    #[arg(long, value_name = "SECONDS", default_value = HOLD_FOR, value_parser = flags::seconds)]
    hold_for: Duration,
}

fn hold(text: &str) -> Result<Hold, String> {
    match text {
        "start" => Ok(Hold::Start),
        "use" => Ok(Hold::Use),
        "off" => Ok(Hold::Off),
        _ => Err("it is not one of start, use, off".to_owned()),
    }
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Holding {
    hold: Hold,
    /// A holder that this process has started and that waits for what it is to do.
    started: Option<(Child, Channel)>,
}

impl HoldFlags {
    /// Starts a holder, if there is none in any of these run directories. It is done now because a confined process starts
    /// no programs; the holder waits for [`connect`](Holding::connect).
    pub(super) fn start<'a>(&self, run_dirs: impl IntoIterator<Item = &'a Path>) -> Holding {
        let mut run_dirs = run_dirs.into_iter().peekable();
        let is_wanted = self.hold == Hold::Start && run_dirs.peek().is_some();
        let is_there = |run_dir: &Path| Channel::connect(&run_dir.join(HOLD_SOCKET)).is_ok();
        let started = match is_wanted && !run_dirs.any(is_there) {
            true => self.spawn().inspect_err(not_held).ok(),
            false => None,
        };
        Holding { hold: self.hold, started }
    }

    fn spawn(&self) -> std::io::Result<(Child, Channel)> {
        let (own, other) = Channel::pair()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["hold", "--started", "--hold-for", &self.hold_for.as_secs_f64().to_string()]);
        // Whoever reads what this process writes must see its end.
        command.stdin(OwnedFd::from(other)).stdout(Stdio::null()).stderr(Stdio::null());
        Ok((command.current_dir("/").spawn()?, own))
    }
}

impl Holding {
    /// Connects to the holder, and receives what it kept for a switch that has ended. `None`: there is none.
    pub(super) fn connect(&mut self, run_dir: &Path) -> Option<(HolderLink, Inherited)> {
        if self.hold == Hold::Off {
            // One that an earlier run has started has devices open that this one opens.
            end_holder(run_dir);
            return None;
        }
        match HolderLink::connect(run_dir) {
            Ok(connected) => return Some(connected),
            // None listens.
            Err(HoldError::Io(_)) => {}
            Err(error) => not_held(&error),
        }
        let (_, channel) = self.started.as_mut()?;
        let channel = std::mem::replace(channel, Channel::pair().ok()?.0);
        let run_dir = std::path::absolute(run_dir).ok()?;
        HolderLink::start(channel, &run_dir).inspect_err(not_held).ok()
    }

    /// Whether a holder that starts later is to be used.
    pub(super) fn is_wanted(&self) -> bool {
        self.hold != Hold::Off
    }

    /// The system can forget a holder that has ended.
    pub(super) fn reap(&mut self) {
        self.started.take_if(|(child, _)| !matches!(child.try_wait(), Ok(None)));
    }
}

fn not_held(error: &impl std::fmt::Display) {
    tracing::warn!(target: "run", %error, "devices are not held: after a crash they are opened again");
}
