//! The control socket of a running switch.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podswitch_api::{ApiServer, DropLog, adopt, bind};
use podswitch_node::{NodeCaller, NodeOptions};
use rustix::fs::Gid;
use rustix::process::getgroups;
use rustix::thread::set_thread_groups;

use super::outputs::Outputs;
use crate::failure::Failure;
use crate::inspect::SOCKET;
use crate::log;

/// Location and access of the control socket.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct ControlFlags {
    /// The socket at which `status`, `flows`, `drops` and other commands query this switch.
    /// Default: ctl.sock in the run directory, if there is one. `off`: no socket.
    #[arg(long, value_name = "PATH|off")]
    control_socket: Option<PathBuf>,
    /// Numeric ID of the group that may query the switch in addition to root.
    #[arg(long, value_name = "GID")]
    control_group: Option<u32>,
}

/// The bound socket, before the node runs.
pub(super) struct Control {
    path: Option<PathBuf>,
    group: Option<u32>,
    /// `None`: it is not bound yet.
    listener: Option<std::os::unix::net::UnixListener>,
    log: Arc<DropLog>,
    outputs: Option<Outputs>,
}

impl ControlFlags {
    /// Joins the group that may query the switch. Call it before the process is confined: a member
    /// can assign the socket to the group without privileges.
    pub(super) fn join_group(&self) {
        let Some(gid) = self.control_group else { return };
        let mut groups = getgroups().unwrap_or_default();
        groups.push(Gid::from_raw(gid));
        // If joining is not allowed, assigning the socket to the group fails later and reports the
        // error.
        let _ = set_thread_groups(&groups);
    }

    /// Binds the socket, so that errors are reported before anything is set up. While a predecessor has it (`is_shared`),
    /// it is bound when it is served.
    pub(super) fn open(
        &self,
        run_dir: Option<&Path>,
        is_shared: bool,
        outputs: Outputs,
    ) -> Result<Control, Failure> {
        let path = match &self.control_socket {
            Some(path) if path.as_os_str() == "off" => None,
            Some(path) => Some(path.clone()),
            None => run_dir.map(|dir| dir.join(SOCKET)),
        };
        let (group, log) = (self.control_group, Arc::default());
        let mut control = Control { path, group, listener: None, log, outputs: Some(outputs) };
        if !is_shared {
            control.bind()?;
        }
        Ok(control)
    }
}

impl Control {
    fn bind(&mut self) -> Result<(), Failure> {
        let Some(path) = self.path.as_ref().filter(|_| self.listener.is_none()) else {
            return Ok(());
        };
        let bound = bind(path, self.group).map_err(|error| {
            Failure::Setup(format!("--control-socket {}: {error}", path.display()))
        })?;
        self.listener = Some(bound);
        Ok(())
    }

    /// Enables records of drops and connections if something consumes them. Other events are
    /// logged.
    pub(super) fn options(&mut self, options: NodeOptions, has_page: bool) -> NodeOptions {
        let has_log = self.path.is_some() || has_page;
        match self.outputs.take() {
            Some(outputs) => outputs.options(options, Arc::clone(&self.log), has_log),
            None => options,
        }
    }

    /// The log of drops.
    pub(super) fn log(&self) -> Arc<DropLog> {
        Arc::clone(&self.log)
    }

    /// Uses a predecessor's socket, if it is at the same path.
    pub(super) fn inherit(&mut self, socket: OwnedFd) {
        if let Some(path) = &self.path
            && let Ok(Some(listener)) = adopt(socket, path, self.group)
        {
            self.listener = Some(listener);
        }
    }

    /// Starts to serve requests.
    pub(super) fn serve(&mut self, node: NodeCaller) -> Result<Option<ApiServer>, Failure> {
        self.bind()?;
        let Some(listener) = self.listener.take() else { return Ok(None) };
        let server = ApiServer::start(listener, node, self.log(), Some(Arc::new(log::Level)))
            .map_err(|error| Failure::Setup(format!("the control socket's thread: {error}")))?;
        Ok(Some(server))
    }
}
