//! Selects the running switch to query.

use std::path::{Path, PathBuf};

use podswitch_api::{Client, ClientError};
use podswitch_node::UnknownName;

use crate::failure::Failure;

/// Name of the control socket in a run directory.
pub(crate) const SOCKET: &str = "ctl.sock";
/// Where switches have their run directories.
const RUN: &str = "/run/podswitch";

/// The switch to query.
#[derive(clap::Args, Debug)]
pub(crate) struct Target {
    /// The control socket. Default: that of --node, or of the only switch that runs on this
    /// machine.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The node whose switch to query (its socket is /run/podswitch/NAME/ctl.sock).
    #[arg(long, value_name = "NAME", conflicts_with = "socket")]
    node: Option<String>,
}

impl Target {
    /// The node that was named.
    pub(crate) fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// A client of that switch.
    ///
    /// # Errors
    /// No switch is running, or several are and none was selected.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        if let Some(path) = &self.socket {
            return Ok(Client::new(path));
        }
        let runtime =
            std::env::var_os("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("podswitch"));
        let bases: Vec<PathBuf> = [Some(RUN.into()), runtime].into_iter().flatten().collect();
        if let Some(node) = &self.node {
            let paths = bases.iter().map(|base| base.join(node).join(SOCKET));
            let Some(found) = paths.clone().find(|path| path.exists()) else {
                let running = bases.iter().flat_map(|base| sockets(base));
                let running: Vec<String> = running
                    .filter_map(|path| {
                        let name = path.parent()?.file_name()?;
                        Some(name.to_string_lossy().into_owned())
                    })
                    .collect();
                let unknown = UnknownName::new("switch of a node", node, running);
                return Err(Failure::Setup(format!(
                    "{unknown} (its control socket would be {RUN}/{node}/{SOCKET})"
                )));
            };
            return Ok(Client::new(found));
        }
        let mut found: Vec<PathBuf> = bases.iter().flat_map(|base| sockets(base)).collect();
        match found.len() {
            1 => Ok(Client::new(found.remove(0))),
            0 => Err(Failure::Setup(format!(
                "no switch with a control socket runs here (there is no {RUN}/NODE/{SOCKET}); \
                 `vswitch run --run-dir DIR` makes DIR/{SOCKET}, which --socket names"
            ))),
            _ => Err(Failure::Input(format!(
                "several switches are running here; select one with --socket: {}",
                found.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
            ))),
        }
    }
}

fn sockets(base: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(base) else { return Vec::new() };
    let sockets = entries.flatten().map(|entry| entry.path().join(SOCKET));
    sockets.filter(|path| path.exists()).collect()
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(reason) => Self::Input(reason),
            error => Self::Setup(error.to_string()),
        }
    }
}
