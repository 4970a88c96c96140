//! `uninstall` and `probe` as programs.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use podswitch_vswitch_testkit::{Folder, program, run};
use rustix::fs::{FlockOperation, flock};

fn uninstall(folder: &Folder, more: &[&str]) -> (Option<i32>, String) {
    let (run_dir, conf_dir) = (folder.text("run"), folder.text("net.d"));
    let mut arguments = vec!["uninstall", "--run-dir", &run_dir, "--cni-conf-dir", &conf_dir];
    arguments.extend(more);
    let output = run(&arguments);
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn what_is_ours_goes_and_nothing_else() {
    let folder = Folder::new();
    for path in ["run/leases/released", "net.d", "bin"] {
        fs::create_dir_all(folder.path(path)).unwrap();
    }
    for file in [
        "run/lock",
        "run/leases/a",
        "net.d/10-podswitch.conflist",
        "net.d/99-other.conf",
        "bin/podswitch-cni",
        "bin/bridge",
    ] {
        fs::write(folder.path(file), "").unwrap();
    }
    // A link leads nowhere.
    std::os::unix::fs::symlink(folder.path("bin"), folder.path("run/link")).unwrap();
    assert_eq!(uninstall(&folder, &[]).0, Some(0));
    assert!(!folder.path("run").exists() && !folder.path("net.d/10-podswitch.conflist").exists());
    // Without the plugin pods cannot be removed.
    assert!(
        folder.path("net.d/99-other.conf").exists() && folder.path("bin/podswitch-cni").exists()
    );
    let again = uninstall(&folder, &["--cni-bin-dir", &folder.text("bin")]);
    assert_eq!(again.0, Some(0), "{}", again.1);
    assert!(!folder.path("bin/podswitch-cni").exists() && folder.path("bin/bridge").exists());
}

#[test]
fn a_switch_that_runs_is_waited_for() {
    let folder = Folder::new();
    fs::create_dir_all(folder.path("run")).unwrap();
    let lock = fs::File::create(folder.path("run/lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let mut child = Command::new(program())
        .args(["uninstall", "--run-dir", &folder.text("run"), "--cni-conf-dir", "/nowhere"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "it did not wait");
    assert!(folder.path("run/lock").exists());
    drop(lock);
    assert!(child.wait().unwrap().success());
    assert!(!folder.path("run").exists());
}

#[test]
fn probes_tell_open_from_closed() {
    let free =
        || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port();
    let (open, direct, closed) = (free(), free(), free());
    let mut server = Command::new(program())
        .args([
            "probe",
            "serve",
            "--addresses=127.0.0.1,::1",
            &open.to_string(),
            &direct.to_string(),
        ])
        .spawn()
        .unwrap();
    let connect = |more: &[String]| {
        let mut command = Command::new(program());
        command.args([
            "probe",
            "connect",
            "--json",
            "127.0.0.1",
            &open.to_string(),
            "--repeat",
            "3",
        ]);
        let output = command.args(more).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text)
    };
    let good = connect(&[
        format!("--direct={direct}"),
        format!("--closed={closed}"),
        format!("--service-closed={closed}"),
    ]);
    assert_eq!(good.0, Some(0), "{}", good.1);
    assert!(good.1.contains("\"servers\":[\"127.0.0.1\",\"::1\"]"), "{}", good.1);
    for bad in [
        format!("--direct={closed}"),
        format!("--closed={direct}"),
        format!("--service-closed={open}"),
    ] {
        let found = connect(&[bad]);
        assert_eq!(found.0, Some(1), "{}", found.1);
        assert!(found.1.starts_with("{\"ok\":false"), "{}", found.1);
    }
    server.kill().unwrap();
    server.wait().unwrap();
}
