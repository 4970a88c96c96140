//! `uninstall`: removes from a node the data that a stopped switch left for its next run.
#![expect(clippy::disallowed_methods, reason = "waits for a process by the real clock")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use podswitch_linux::{HostError, NetNs, sysctl, userns};
use rustix::fs::{FlockOperation, flock};

use crate::failure::Failure;
use crate::{Done, print};

/// How long the switch may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(90);
/// Our configuration for the container runtime.
const CONFLIST: &str = "10-podswitch.conflist";
/// Our CNI plugin.
const PLUGIN: &str = "podswitch-cni";

/// Remove from this node what a stopped switch left for its next run: the CNI configuration, steering
/// of Services and other settings of the node's kernel, then the run directory.
///
/// Waits for a switch that is still running. The plugin is kept unless --cni-bin-dir is given:
/// without the plugin, the runtime cannot remove the pods that it attached. Missing files are not
/// an error.
///
/// Exit status: 0 everything is removed, 1 something is not.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The switch's run directory.
    #[arg(long, value_name = "DIR")]
    run_dir: PathBuf,
    /// Where the container runtime looks for CNI configuration.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Where the node's kernel settings are, if /proc/sys is read-only as in containers: another mount of
    /// it.
    #[arg(long, value_name = "DIR")]
    proc_sys: Option<PathBuf>,
    /// Also remove the CNI plugin from this folder. Do this only when none of the pods that it
    /// attached is left.
    #[arg(long, value_name = "DIR")]
    cni_bin_dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Done {
    if let Some(path) = &args.proc_sys {
        sysctl::use_root(path);
    }
    // First, so that the runtime attaches no more pods through it.
    remove(&args.cni_conf_dir.join(CONFLIST))?;
    wait_for_end(&args.run_dir)?;
    // Interfaces are there as long as it has them open.
    podswitch_node::hold::end_holder(&args.run_dir);
    if userns::has_privilege() {
        // A switch that was killed, or stopped with --keep, left them to its next run, which does not come.
        podswitch_node::remove_leftovers(&NetNs::current()?)?;
    }
    for path in children(&args.run_dir)? {
        remove(&path)?;
    }
    // It may be a mount point, or belong to another program.
    let _ = fs::remove_dir(&args.run_dir);
    if let Some(folder) = &args.cni_bin_dir {
        remove(&folder.join(PLUGIN))?;
    }
    // The agent restores its configuration until it ends.
    remove(&args.cni_conf_dir.join(CONFLIST))?;
    print::line("uninstalled");
    Ok(())
}

fn wait_for_end(run_dir: &Path) -> Done {
    let lock = match fs::OpenOptions::new().read(true).write(true).open(run_dir.join("lock")) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("open", &run_dir.join("lock"), error)),
    };
    let deadline = Instant::now() + STOP_TIMEOUT;
    while let Err(errno) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        let error = io::Error::from(errno);
        if error.kind() != io::ErrorKind::WouldBlock || Instant::now() >= deadline {
            return Err(Failure::Setup(format!(
                "a switch still runs in {}: {error}",
                run_dir.display()
            )));
        }
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn children(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed("list", folder, error)),
    }
}

/// Removes a file, or a folder with its contents. A link is removed, not followed.
fn remove(path: &Path) -> Done {
    let is_folder = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let removed = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Ok(()) => {
            print::line(format_args!("removed {}", path.display()));
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove", path, error)),
    }
}

fn failed(what: &str, path: &Path, error: io::Error) -> Failure {
    HostError::new(format!("{what} {}", path.display()), error).into()
}
