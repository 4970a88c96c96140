//! The CNI agent of `run`, which attaches and detaches pods, and the plugin's installation.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podswitch_node::NodeCaller;
use podswitch_node::cni::{Agent, AgentOptions, BINARY, ClusterView, Install};

use crate::failure::Failure;

/// The socket's name in the run directory.
const SOCKET: &str = "cni.sock";

/// How a container runtime attaches pods.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct CniFlags {
    /// The socket that the CNI plugin podswitch-cni connects to, or `off`. Queue, heartbeat and
    /// leases are beside it. Default: cni.sock in the run directory, if there is one.
    #[arg(long, value_name = "PATH|off", value_parser = socket)]
    cni_socket: Option<Socket>,
    /// Install the plugin podswitch-cni in this folder, and restore it if it is removed.
    #[arg(long, value_name = "DIR")]
    cni_bin_dir: Option<PathBuf>,
    /// Install the plugin's configuration 10-podswitch.conflist in this folder once pods can be
    /// attached, and restore it if it is removed. It stays when the switch stops.
    #[arg(long, value_name = "DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// The plugin to install. Default: podswitch-cni beside this program.
    #[arg(long, value_name = "FILE", requires = "cni_bin_dir")]
    cni_plugin: Option<PathBuf>,
}

/// `--cni-socket`.
#[derive(Clone, Debug)]
enum Socket {
    Off,
    At(PathBuf),
}

fn socket(text: &str) -> Result<Socket, String> {
    match text {
        "off" => Ok(Socket::Off),
        path if Path::new(path).is_absolute() && Path::new(path).file_name().is_some() => {
            Ok(Socket::At(path.into()))
        }
        _ => Err("it is neither an absolute path nor off".to_owned()),
    }
}

impl CniFlags {
    /// Starts the agent, if it is enabled. `listener`: its socket, if there is one already; it is used if it has this path. It ends when it is dropped.
    pub(super) fn start(
        &self,
        run_dir: Option<&Path>,
        node: NodeCaller,
        view: &Arc<dyn ClusterView>,
        listener: Option<Arc<UnixListener>>,
    ) -> Result<Option<Agent>, Failure> {
        let socket = match (&self.cni_socket, run_dir) {
            (Some(Socket::Off), _) => return Ok(None),
            (Some(Socket::At(path)), _) => path.clone(),
            (None, Some(run_dir)) => run_dir.join(SOCKET),
            (None, None) if self.installs() => {
                let text = "--cni-bin-dir and --cni-conf-dir need --cni-socket or --run-dir";
                return Err(Failure::Input(text.to_owned()));
            }
            (None, None) => return Ok(None),
        };
        let mut options = AgentOptions::new(&socket);
        options.listener = listener.filter(|listener| {
            let address = listener.local_addr();
            address.is_ok_and(|address| address.as_pathname() == Some(&socket)) && socket.exists()
        });
        if let Some(run_dir) = run_dir {
            options.leases = run_dir.join("leases");
        }
        if self.installs() {
            options.install = Some(self.install(&socket));
        }
        let agent = Agent::start(options, node, view.clone(), super::report::cni);
        let failed = |error| Failure::Setup(format!("--cni-socket {}: {error}", socket.display()));
        agent.map(Some).map_err(failed)
    }

    fn installs(&self) -> bool {
        self.cni_bin_dir.is_some() || self.cni_conf_dir.is_some()
    }

    fn install(&self, socket: &Path) -> Install {
        let plugin = self.cni_plugin.clone().unwrap_or_else(|| {
            let own = std::env::current_exe().unwrap_or_default();
            own.with_file_name(BINARY)
        });
        let mut install = Install::new(plugin, socket);
        install.bin_dir.clone_from(&self.cni_bin_dir);
        install.conf_dir.clone_from(&self.cni_conf_dir);
        install
    }
}
