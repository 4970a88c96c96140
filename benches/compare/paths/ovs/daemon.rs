//! A pair of Open vSwitch daemons for one path: database, sockets and logs in a temporary folder,
//! both in one namespace, and both ended with this process for any reason.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use podswitch_linux::NetNs;

use super::super::{Missing, tools};
use crate::Outcome;
use crate::usage;

/// Starts the daemons, and waits on a pipe whose other end this process holds. When that end
/// closes, because the path is removed or the process has ended, it ends the daemons and removes
/// their folder.
const GUARD: &str = r#"
dir=$1 vswitchd=$2 schema=$3 db='' vs=''
shift 3
trap : INT TERM HUP
end() {
    [ -z "$vs" ] || { kill "$vs"; wait "$vs"; }
    [ -z "$db" ] || { kill "$db"; wait "$db"; }
    cd / && rm -rf -- "$dir"
}
fail() { echo "$1"; end; exit 1; }
cd "$dir" || exit 1
ovsdb-tool create conf.db "$schema" || fail "ovsdb-tool failed"
ovsdb-server conf.db --remote=punix:db.sock --unixctl=db.ctl --pidfile=db.pid --no-chdir \
    --log-file=db.log -vconsole:off 1>&2 & db=$!
error=$(ovs-vsctl --db=unix:db.sock --retry --timeout=20 --no-wait init -- \
    set Open_vSwitch . external_ids:init=yes "$@" 2>&1) || fail "$error"
"$vswitchd" unix:db.sock --unixctl=vs.ctl --pidfile=vs.pid --no-chdir \
    --log-file=vs.log -vconsole:off 1>&2 & vs=$!
error=$(ovs-vsctl --db=unix:db.sock --timeout=20 \
    set Open_vSwitch . external_ids:started=yes 2>&1) || fail "$error: $(tail -n 1 vs.log)"
echo started
read -r _
end
"#;

/// Where packages install the database's schema.
const SCHEMAS: [&str; 2] =
    ["/usr/share/openvswitch/vswitch.ovsschema", "/usr/local/share/openvswitch/vswitch.ovsschema"];
/// Debian's build with DPDK, whose user-space datapath supports segmentation offload. On other
/// systems the only one is the one in PATH.
const WITH_DPDK: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";

/// The programs.
pub(crate) struct Programs {
    vswitchd: PathBuf,
    schema: &'static str,
    /// Whether it can pass GSO packets unsegmented.
    pub(crate) tso: bool,
}

impl Programs {
    /// The programs of this machine.
    pub(crate) fn find() -> Result<Self, Missing> {
        let plain = tools::find("ovs-vswitchd");
        let vswitchd = match Path::new(WITH_DPDK) {
            with if with.is_file() => with.to_owned(),
            _ => plain?,
        };
        for program in ["ovsdb-server", "ovsdb-tool", "ovs-vsctl", "ovs-ofctl"] {
            tools::find(program)?;
        }
        let schema = SCHEMAS.into_iter().find(|file| Path::new(file).is_file());
        let schema = schema.ok_or_else(|| Missing::Unavailable("no vswitch.ovsschema".into()))?;
        tools::need_root("its user-space datapath")?;
        let tso = tools::version(&vswitchd).contains("DPDK");
        Ok(Self { vswitchd, schema, tso })
    }

    /// Their version, in one line.
    pub(crate) fn version() -> Option<String> {
        Self::find().ok().map(|programs| tools::version(programs.vswitchd))
    }
}

/// See the module's description.
pub(crate) struct Daemon {
    folder: PathBuf,
    guard: Child,
}

impl Daemon {
    /// Starts them with settings (`other_config:NAME=VALUE`) in the first row of the database.
    pub(crate) fn start(ns: &NetNs, programs: &Programs, settings: &[String]) -> Outcome<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // The name is short, because the path of a socket has at most 107 bytes.
        let name = format!("cmp-ovs-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let guard = ns
            .command("sh")
            .args(["-c", GUARD, "ovs"])
            .arg(&folder)
            .arg(&programs.vswitchd)
            .arg(programs.schema)
            .args(settings)
            .env("OVS_RUNDIR", &folder)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("sh: {e}"))?;
        // From here on, the guard ends it.
        let mut daemon = Self { folder, guard };
        let said = daemon.answer()?;
        if said != "started" {
            return Err(format!("Open vSwitch: {said}"));
        }
        for pid in ["db.pid", "vs.pid"] {
            let text = fs::read_to_string(daemon.folder.join(pid)).unwrap_or_default();
            text.trim().parse().into_iter().for_each(usage::count_process);
        }
        Ok(daemon)
    }

    /// Reads the first line of the guard.
    fn answer(&mut self) -> Outcome<String> {
        let mut pipe = self.guard.stdout.take().ok_or("no pipe")?;
        let (mut line, mut byte) = (Vec::new(), [0]);
        while pipe.read(&mut byte).map_err(|e| e.to_string())? == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// Runs `ovs-vsctl`; returns its output.
    pub(crate) fn vsctl(&self, arguments: &str) -> Outcome<String> {
        let mut command = Command::new("ovs-vsctl");
        command.arg(format!("--db=unix:{}", self.folder.join("db.sock").display()));
        command.arg("--timeout=20").args(arguments.split_whitespace());
        tools::run(&mut command, "")
    }

    /// The folder of its files. It is removed with the daemons.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The process id of `ovs-vswitchd`.
    pub(crate) fn pid(&self) -> Outcome<u32> {
        let text = fs::read_to_string(self.folder.join("vs.pid")).map_err(|e| e.to_string())?;
        text.trim().parse().map_err(|_| format!("vs.pid: {text}"))
    }

    /// Runs `ovs-appctl` for `ovs-vswitchd`; returns its output.
    pub(crate) fn appctl(&self, arguments: &str) -> Outcome<String> {
        let mut command = Command::new("ovs-appctl");
        command.arg("-t").arg(self.folder.join("vs.ctl")).args(arguments.split_whitespace());
        tools::run(&mut command, "")
    }

    /// Runs `ovs-ofctl` with text as its input.
    pub(crate) fn ofctl(&self, verb: &str, bridge: &str, input: &str) -> Outcome<()> {
        let socket = self.folder.join(format!("{bridge}.mgmt"));
        let mut command = Command::new("ovs-ofctl");
        command.args(["-O", "OpenFlow15", verb]);
        command.arg(format!("unix:{}", socket.display())).arg("-");
        tools::run(&mut command, input).map(drop)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        const POLL_INTERVAL: Duration = Duration::from_millis(20);
        // The guard waits for the pipe to close.
        drop(self.guard.stdin.take());
        for _ in 0..250 {
            if !matches!(self.guard.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(POLL_INTERVAL);
        }
        eprintln!("Open vSwitch's daemons do not end: see {}", self.folder.display());
    }
}
