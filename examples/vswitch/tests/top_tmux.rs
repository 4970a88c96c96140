//! `top` on a real terminal, which tmux plays.

use std::process::Command;
use std::thread;
use std::time::Duration;

use podswitch_linux::NetNs;
use podswitch_testkit::privilege::skip;
use podswitch_testkit::require_privilege;
use podswitch_vswitch_testkit::running::{Limit, PATIENCE, Running};
use podswitch_vswitch_testkit::{Folder, head, program, run, veth_pod};
use rustix::process::{Pid, Signal, kill_process};

/// A tmux server of our own with a shell in it.
struct Terminal(String);

impl Terminal {
    fn new() -> Self {
        let terminal = Self(format!("podswitch-{}", std::process::id()));
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "sh"]);
        terminal
    }

    #[track_caller]
    fn tmux(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux").args(["-L", &self.0]).args(arguments).output();
        let output = output.expect("tmux runs");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tmux {arguments:?}: {err}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"][..], keys].concat());
    }

    /// Waits until the screen is as wanted, and returns it.
    #[track_caller]
    fn shows(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let limit = Limit::new(PATIENCE);
        let mut screen = String::new();
        while limit.left().is_some() {
            screen = self.tmux(&["capture-pane", "-p"]);
            if wanted(&screen) {
                return screen;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("{what} is not shown:\n{screen}");
    }

    /// The process that the shell runs.
    fn child(&self) -> Pid {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let shell = shell.trim();
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"));
        let children = children.expect("it runs");
        let number = children.split_whitespace().next().expect("a child");
        Pid::from_raw(number.parse().expect("a number")).expect("a process")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Nothing depends on it.
        let _ = Command::new("tmux").args(["-L", &self.0, "kill-server"]).output();
    }
}

#[test]
fn the_screen_follows_keys_sizes_and_restarts() {
    require_privilege!();
    const NAME: &str = "the_screen_follows_keys_sizes_and_restarts";
    if !cfg!(feature = "top") {
        return skip(NAME, "built without --features top: there is no screen");
    }
    if Command::new("tmux").arg("-V").output().is_err() {
        return skip(NAME, "tmux is not installed");
    }
    let [x, node] = [(); 2].map(|()| NetNs::anonymous().expect("a namespace"));
    let folder = Folder::new();
    folder.manifest("state", &[head(), veth_pod("x", 2, &x)].concat());
    let (manifests, netns) = (folder.text("state"), node.path().display().to_string());
    let (run_dir, socket) = (folder.text("run"), folder.text("run/ctl.sock"));
    let start = || {
        let running = Running::start(&[
            "--node",
            "n1",
            "--manifests",
            &manifests,
            "--node-netns",
            &netns,
            "--masquerade",
            "off",
            "--run-dir",
            &run_dir,
        ]);
        running.says("ready");
        running
    };
    let running = start();

    // Without a terminal a sample is printed.
    let once = run(&["top", "--socket", &socket, "--interval", "0.1"]);
    let text = String::from_utf8(once.stdout).expect("text");
    assert!(text.starts_with("n1 epoch ") && text.contains("\npods\nPOD"), "{text}");
    assert!(text.contains("\na/x  ") && text.contains("\nServices\nSERVICE"), "{text}");

    let terminal = Terminal::new();
    let program = program().display();
    let command = format!("{program} top --interval 0.2 --socket {socket}; echo ended $?");
    terminal.keys(&[&command, "Enter"]);
    let screen = terminal.shows("the pod", |screen| screen.contains("\na/x "));
    assert!(screen.starts_with("n1 epoch "), "{screen}");
    assert!(screen.contains(" 1 pods   2 flows   3 drops   4 Services"), "{screen}");
    terminal.keys(&["Tab"]);
    terminal.shows("the flows", |screen| screen.contains("\nPROTO CLIENT"));
    terminal.keys(&["3"]);
    terminal.shows("the drops", |screen| screen.contains("\nREASON"));
    terminal.keys(&["Left", "Left", "/", "z", "z", "Enter"]);
    terminal.shows("nothing", |screen| screen.contains("0 of 1 | filter: zz"));
    terminal.keys(&["Escape"]);
    terminal
        .shows("the pod again", |screen| screen.contains("\na/x ") && screen.contains("1 of 1"));
    terminal.keys(&["p"]);
    terminal.shows("a pause", |screen| screen.contains("PAUSED"));
    terminal.keys(&["p"]);
    terminal.tmux(&["resize-window", "-x", "120", "-y", "10"]);
    terminal.shows("ten lines", |screen| {
        screen.lines().count() == 10
            && screen.lines().last().is_some_and(|line| line.contains("q quit"))
    });

    // The switch goes away and comes back.
    assert_eq!(running.stop(), Some(0));
    terminal.shows("that it is gone", |screen| screen.starts_with("the switch does not answer"));
    let running = start();
    terminal.shows("that it is back", |screen| {
        screen.starts_with("n1 epoch ") && screen.contains("\na/x ")
    });

    // SIGTERM leaves the terminal as it was.
    kill_process(terminal.child(), Signal::TERM).expect("it runs");
    terminal.shows("the end", |screen| screen.contains("ended 0"));
    assert_eq!(terminal.tmux(&["display-message", "-p", "#{alternate_on}"]).trim(), "0");
    terminal.keys(&["stty -a", "Enter"]);
    let modes = terminal.shows("the modes", |screen| screen.contains("isig"));
    assert!(modes.contains(" icanon") && modes.contains(" echo "), "{modes}");
    terminal.keys(&["clear", "Enter"]);
    terminal.keys(&[&command, "Enter"]);
    terminal.shows("the pod", |screen| screen.contains("\na/x "));
    terminal.keys(&["q"]);
    terminal.shows("the end", |screen| screen.contains("ended 0"));

    // It ends with its terminal.
    terminal.keys(&["clear", "Enter"]);
    terminal.keys(&[&command, "Enter"]);
    terminal.shows("the pod", |screen| screen.contains("\na/x "));
    let top = terminal.child().as_raw_nonzero();
    drop(terminal);
    let limit = Limit::new(PATIENCE);
    while std::path::Path::new(&format!("/proc/{top}")).exists() {
        assert!(limit.left().is_some(), "it runs without a terminal");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(running.stop(), Some(0));
}
