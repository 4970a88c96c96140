//! Kernel settings that the switch changes while it runs. Their previous values are restored at its end. If it is
//! killed, or leaves them to the next run, the next run that restores them does so at its end.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

use super::{HostError, NetNs, sysctl};

/// The folder in which runs record their changes for the next run. The records belong to a network namespace, not to a
/// node's name: the next run in that namespace finds them. They are in memory, as the settings are.
const DIRECTORY: &str = "/run/podswitch/settings";

/// Owner of the settings that make the node's kernel forward packets.
pub const FORWARDING: &str = "forwarding";
/// Owner of the list of reserved ports.
pub const PORTS: &str = "ports";

/// The system's identification of its current boot; no namespace survives a boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Changed settings. When this is dropped, they are restored, except those that somebody else has changed since.
#[derive(Debug)]
pub struct ChangedSettings {
    ns: NetNs,
    record: Option<Record>,
    changed: BTreeMap<String, Change>,
    stays: bool,
}

/// The value of a setting before and after the change.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Change {
    before: String,
    after: String,
}

impl ChangedSettings {
    /// No changed settings in `ns`, or those that a killed run of the same `owner` left. `owner` distinguishes several
    /// users of a namespace: letters, digits and hyphens. If `/run` cannot be written, or another process with the same
    /// owner is running, the previous values are lost when this process is killed.
    pub fn new(ns: &NetNs, owner: &str) -> Self {
        Self::recorded_in(ns, Path::new(DIRECTORY), owner)
    }

    fn recorded_in(ns: &NetNs, directory: &Path, owner: &str) -> Self {
        let record = Record::open(ns, directory, owner);
        let mut changed = record.as_ref().map(Record::read).unwrap_or_default();
        // If somebody else has changed a setting since, it is not ours any more.
        changed.retain(|key, change| sysctl::get(ns, key).is_ok_and(|now| now == change.after));
        Self { ns: ns.clone(), record, changed, stays: false }
    }

    /// Sets a setting to this value. Returns whether it had another one. It will be restored to the value that the
    /// switch found when it last had to set it.
    ///
    /// # Errors
    /// As [`sysctl::set`].
    pub fn set(&mut self, key: &str, value: &str) -> Result<bool, HostError> {
        let now = sysctl::get(&self.ns, key)?;
        if now == value {
            return Ok(false);
        }
        let ours = self.changed.get(key).filter(|change| change.after == now);
        let before = ours.map_or(now, |change| change.before.clone());
        // Recorded first: the record of a change that never happened has no effect.
        let change = Change { before, after: value.to_owned() };
        self.changed.insert(key.to_owned(), change);
        if let Some(record) = &self.record {
            // Without a record, only the previous value is lost if the process is killed.
            let _ = record.write(&self.changed);
        }
        sysctl::set(&self.ns, key, value).map(|()| true)
    }

    /// The value of a setting before the change, if the setting still has the value of the change; otherwise the value
    /// that others have set.
    ///
    /// # Errors
    /// As [`sysctl::get`].
    pub fn others(&self, key: &str) -> Result<String, HostError> {
        let now = sysctl::get(&self.ns, key)?;
        let ours = self.changed.get(key).filter(|change| change.after == now);
        Ok(ours.map_or(now, |change| change.before.clone()))
    }

    /// Leaves the settings unchanged when this is dropped, as a kill does: the next process with the same owner takes
    /// them over.
    pub fn leave_in_force(&mut self) {
        self.stays = true;
    }
}

impl Drop for ChangedSettings {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        // Best effort, because the namespace may not exist any more, and there is no caller to report to.
        for (key, Change { before, after }) in &self.changed {
            if sysctl::get(&self.ns, key).is_ok_and(|now| now == *after) {
                let _ = sysctl::set(&self.ns, key, before);
            }
        }
        if let Some(record) = &self.record {
            record.remove();
        }
    }
}

/// Restores the settings that an earlier run left changed, if no other run follows.
pub fn forget(ns: &NetNs) {
    for owner in [FORWARDING, PORTS] {
        drop(ChangedSettings::new(ns, owner));
    }
}

/// The file of a namespace's changed settings: the boot, then a line for each setting with its name and both values. A
/// running process holds a lock on it, so that only the settings of a killed run are taken over.
#[derive(Debug)]
struct Record {
    path: PathBuf,
    boot: String,
    _lock: fs::File,
}

impl Record {
    /// `None`: settings cannot be recorded.
    fn open(ns: &NetNs, directory: &Path, owner: &str) -> Option<Self> {
        // Inode numbers of namespaces are reused, cookies are not.
        let cookie = ns.cookie().ok()?;
        let boot = fs::read_to_string(BOOT_ID).ok()?.trim().to_owned();
        fs::create_dir_all(directory).ok()?;
        let path = directory.join(format!("{cookie}-{owner}"));
        let lock = fs::File::create(path.with_extension("lock")).ok()?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Self { path, boot, _lock: lock })
    }

    /// The settings of a killed run, if they can be read.
    fn read(&self) -> BTreeMap<String, Change> {
        let Ok(text) = fs::read_to_string(&self.path) else { return BTreeMap::new() };
        let mut lines = text.lines();
        if lines.next() != Some(&self.boot) {
            return BTreeMap::new();
        }
        lines.filter_map(parse).collect()
    }

    fn write(&self, changed: &BTreeMap<String, Change>) -> io::Result<()> {
        let mut text = format!("{}\n", self.boot);
        for (key, Change { before, after }) in changed {
            text.push_str(&format!("{key}\t{before}\t{after}\n"));
        }
        // If the process is killed here, either the old file or the new one exists.
        let new = self.path.with_extension("new");
        fs::write(&new, text)?;
        Ok(renameat_with(CWD, &new, CWD, &self.path, RenameFlags::empty())?)
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(self.path.with_extension("lock"));
    }
}

/// A line of the file. Names that do not belong to settings of the network are refused.
fn parse(line: &str) -> Option<(String, Change)> {
    let mut fields = line.split('\t');
    let (key, before, after) = (fields.next()?, fields.next()?, fields.next()?);
    let is_sound = key.starts_with("net/") && !key.contains("..");
    let change = Change { before: before.to_owned(), after: after.to_owned() };
    (is_sound && fields.next().is_none()).then(|| (key.to_owned(), change))
}

#[cfg(test)]
mod tests {
    use std::mem;

    use super::*;

    const FORWARD: &str = "net/ipv4/ip_forward";
    const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";

    /// A folder that is removed with this value.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("settings-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Simulates a kill: the kernel closes the process's files, and nothing else happens.
    fn kill(mut run: ChangedSettings) {
        run.record = None;
        mem::forget(run);
    }

    fn values(ns: &NetNs) -> [String; 2] {
        [FORWARD, RESERVED].map(|key| sysctl::get(ns, key).unwrap())
    }

    #[test]
    fn previous_values_survive_a_kill() {
        let Ok(ns) = NetNs::anonymous() else { return eprintln!("SKIPPED: needs privilege") };
        let folder = Folder::new("kill");
        sysctl::set(&ns, RESERVED, "8080").unwrap();
        let before = values(&ns);
        for kills in 0..3 {
            for _ in 0..kills {
                let mut run = ChangedSettings::recorded_in(&ns, &folder.0, "test");
                run.set(FORWARD, "1").unwrap();
                run.set(RESERVED, "8080,30000-32767").unwrap();
                kill(run);
                assert_ne!(values(&ns), before);
            }
            let mut run = ChangedSettings::recorded_in(&ns, &folder.0, "test");
            assert_eq!(run.others(RESERVED).unwrap(), "8080");
            assert_eq!(run.set(FORWARD, "1").unwrap(), kills == 0, "it has the value already");
            run.set(RESERVED, "8080,30000-32767,40000").unwrap();
            drop(run);
            assert_eq!(values(&ns), before, "{kills} kills");
            assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
        }
    }

    #[test]
    fn settings_left_in_force_are_restored_by_the_next_run() {
        let Ok(ns) = NetNs::anonymous() else { return eprintln!("SKIPPED: needs privilege") };
        let folder = Folder::new("left");
        let before = values(&ns);
        for runs in [1, 2] {
            for _ in 0..runs {
                let mut run = ChangedSettings::recorded_in(&ns, &folder.0, "test");
                run.set(RESERVED, "30000-32767").unwrap();
                run.leave_in_force();
                drop(run);
                assert_eq!(sysctl::get(&ns, RESERVED).unwrap(), "30000-32767");
            }
            drop(ChangedSettings::recorded_in(&ns, &folder.0, "test"));
            assert_eq!(values(&ns), before);
        }
    }

    #[test]
    fn changes_by_others_are_kept() {
        let Ok(ns) = NetNs::anonymous() else { return eprintln!("SKIPPED: needs privilege") };
        let folder = Folder::new("others");
        sysctl::set(&ns, FORWARD, "0").unwrap();
        let mut run = ChangedSettings::recorded_in(&ns, &folder.0, "test");
        run.set(FORWARD, "1").unwrap();
        run.set(RESERVED, "30000-32767").unwrap();
        sysctl::set(&ns, RESERVED, "9999").unwrap();
        drop(run);
        assert_eq!(values(&ns), ["0", "9999"]);
        // The same after a kill.
        let mut run = ChangedSettings::recorded_in(&ns, &folder.0, "test");
        run.set(FORWARD, "1").unwrap();
        run.set(RESERVED, "9999,30000-32767").unwrap();
        kill(run);
        sysctl::set(&ns, RESERVED, "7777").unwrap();
        let run = ChangedSettings::recorded_in(&ns, &folder.0, "test");
        assert_eq!(run.others(RESERVED).unwrap(), "7777");
        drop(run);
        assert_eq!(values(&ns), ["0", "7777"]);
        // The value that somebody set in the meantime is restored.
        let mut run = ChangedSettings::recorded_in(&ns, &folder.0, "test");
        run.set(RESERVED, "7777,30000-32767").unwrap();
        sysctl::set(&ns, RESERVED, "8888").unwrap();
        run.set(RESERVED, "8888,30000-32767").unwrap();
        drop(run);
        assert_eq!(values(&ns), ["0", "8888"]);
    }

    #[test]
    fn records_of_others_are_ignored() {
        let Ok(ns) = NetNs::anonymous() else { return eprintln!("SKIPPED: needs privilege") };
        let folder = Folder::new("notes");
        let now = sysctl::get(&ns, FORWARD).unwrap();
        let record = Record::open(&ns, &folder.0, "test").unwrap();
        let (path, boot) = (record.path.clone(), record.boot.clone());
        drop(record);
        let other = if now == "0" { "1" } else { "0" };
        for text in [
            format!("another boot\n{FORWARD}\t{other}\t{now}\n"),
            format!("{boot}\nkernel/hostname\tx\ty\nnet/../kernel/pid_max\t1\t2\n"),
            format!("{boot}\n{FORWARD}\t{other}\n{FORWARD}\t{other}\t{now}\tmore\n"),
            String::new(),
            "\u{0}\t\n\t\t\n".to_owned(),
        ] {
            fs::write(&path, &text).unwrap();
            let record = Record::open(&ns, &folder.0, "test").unwrap();
            assert!(record.read().is_empty(), "{text:?}");
            drop(record);
            drop(ChangedSettings::recorded_in(&ns, &folder.0, "test"));
            assert_eq!(sysctl::get(&ns, FORWARD).unwrap(), now);
        }
        // Another running process is not a killed one.
        let mut first = ChangedSettings::recorded_in(&ns, &folder.0, "test");
        first.set(RESERVED, "30000-32767").unwrap();
        let second = ChangedSettings::recorded_in(&ns, &folder.0, "test");
        assert_eq!(second.others(RESERVED).unwrap(), "30000-32767");
        drop(second);
        assert_eq!(sysctl::get(&ns, RESERVED).unwrap(), "30000-32767");
        drop(first);
        assert_eq!(sysctl::get(&ns, RESERVED).unwrap(), "");
        let record = Record::open(&ns, &folder.0, "test").unwrap();
        // Another namespace has records of its own.
        let second = NetNs::anonymous().unwrap();
        assert_ne!(Record::open(&second, &folder.0, "test").unwrap().path, record.path);
    }
}
