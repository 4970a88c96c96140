//! Paths to network namespaces may come from a Pod's annotation. A path that is not a namespace is
//! refused with its name, and opening it neither blocks nor has side effects.

use std::fs;
use std::path::Path;

use podswitch_linux::NetNs;

#[test]
fn only_a_network_namespace_is_opened() {
    let folder = std::env::temp_dir().join(format!("podswitch-netns-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (pipe, link) = (folder.join("pipe"), folder.join("link"));
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
        .unwrap();
    std::os::unix::fs::symlink(&pipe, &link).unwrap();
    let file = folder.join("file");
    fs::write(&file, "text").unwrap();
    let not = "it is not a namespace";
    for (path, reason) in [
        (&*pipe, not),
        (&*link, not),
        (&*file, not),
        (&*folder, not),
        (Path::new("/dev/null"), not),
        (Path::new("/dev/ptmx"), not),
        (Path::new("/etc/passwd"), not),
        (Path::new("/proc/self/ns/mnt"), "it is a namespace of another kind"),
        (Path::new("/proc/self/ns/user"), "it is a namespace of another kind"),
        (Path::new("/nowhere"), "No such file"),
    ] {
        let error = NetNs::open(path).expect_err("not a network namespace").to_string();
        assert!(error.contains(reason), "{error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn this_threads_namespace_is_found_by_any_path() {
    let here = NetNs::current().unwrap();
    let link = std::env::temp_dir().join(format!("podswitch-netns-link-{}", std::process::id()));
    std::os::unix::fs::symlink("/proc/self/ns/net", &link).unwrap();
    for path in ["/proc/self/ns/net".as_ref(), "/proc/thread-self/ns/net".as_ref(), &*link] {
        assert!(NetNs::open(path).unwrap().is_same(&here), "{}", Path::display(path));
    }
    fs::remove_file(link).unwrap();
}
