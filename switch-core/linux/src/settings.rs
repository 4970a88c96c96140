//! Kernel settings that the switch changes while it runs. What they were before is put back at its end; if it is
//! killed, or leaves them to the next run, at the end of the next one that puts them back.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

use super::{HostError, NetNs, sysctl};

/// Where runs note for the next what they changed. The notes belong to a network namespace, not to a node's name:
/// the next run there finds them. In memory, as the settings are.
const DIRECTORY: &str = "/run/podswitch/settings";

/// Owner of the settings by which the node's kernel forwards packets.
pub const FORWARDING: &str = "forwarding";
/// Owner of the list of reserved ports.
pub const PORTS: &str = "ports";

/// The system's identification of its current boot, which no namespace outlives.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Settings that were changed, put back when this is dropped: those that nobody else changed meanwhile.
#[derive(Debug)]
pub struct ChangedSettings {
    ns: NetNs,
    record: Option<Record>,
    changed: BTreeMap<String, Change>,
    stays: bool,
}

/// The value of a setting before it was changed, and afterwards.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Change {
    before: String,
    after: String,
}

impl ChangedSettings {
    /// No changed settings in `ns`, or those that a killed run of the same `owner` left changed. `owner` tells
    /// several of a namespace apart: letters, digits and hyphens. Where `/run` cannot be written, or another of the
    /// same owner lives, a kill loses what was before.
    pub fn new(ns: &NetNs, owner: &str) -> Self {
        Self::recorded_in(ns, Path::new(DIRECTORY), owner)
    }

    fn recorded_in(ns: &NetNs, directory: &Path, owner: &str) -> Self {
        let record = Record::open(ns, directory, owner);
        let mut changed = record.as_ref().map(Record::read).unwrap_or_default();
        // What somebody else has changed since is theirs.
        changed.retain(|key, change| sysctl::get(ns, key).is_ok_and(|now| now == change.after));
        Self { ns: ns.clone(), record, changed, stays: false }
    }

    /// Gives a setting this value. Returns whether it had another one. What it is put back to is the value that
    /// the switch found when it last had to set it.
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
        // Noted first: a note of what never happened is not acted on.
        let change = Change { before, after: value.to_owned() };
        self.changed.insert(key.to_owned(), change);
        if let Some(record) = &self.record {
            // Without a note a kill loses what was before, and nothing else.
            let _ = record.write(&self.changed);
        }
        sysctl::set(&self.ns, key, value).map(|()| true)
    }

    /// What a setting had before it was changed, if it has what it was changed to: what others put there.
    ///
    /// # Errors
    /// As [`sysctl::get`].
    pub fn others(&self, key: &str) -> Result<String, HostError> {
        let now = sysctl::get(&self.ns, key)?;
        let ours = self.changed.get(key).filter(|change| change.after == now);
        Ok(ours.map_or(now, |change| change.before.clone()))
    }

    /// Leaves the settings as they are when this is dropped, as a kill does: the next of the same owner takes them over.
    pub fn leave_in_force(&mut self) {
        self.stays = true;
    }
}

impl Drop for ChangedSettings {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        // Best effort, in a namespace that may be gone; nobody is left to be told.
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

/// Puts back what an earlier run left changed, where no other run follows.
pub fn forget(ns: &NetNs) {
    for owner in [FORWARDING, PORTS] {
        drop(ChangedSettings::new(ns, owner));
    }
}

/// The file of a namespace's changed settings: the boot, then a line for each setting with its name and both values.
/// Who lives holds a lock, so that only what a killed run left is taken over.
#[derive(Debug)]
struct Record {
    path: PathBuf,
    boot: String,
    _lock: fs::File,
}

impl Record {
    /// `None`: there can be no record.
    fn open(ns: &NetNs, directory: &Path, owner: &str) -> Option<Self> {
        // Numbers of namespace files are used again, cookies are not.
        let cookie = ns.cookie().ok()?;
        let boot = fs::read_to_string(BOOT_ID).ok()?.trim().to_owned();
        fs::create_dir_all(directory).ok()?;
        let path = directory.join(format!("{cookie}-{owner}"));
        let lock = fs::File::create(path.with_extension("lock")).ok()?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Self { path, boot, _lock: lock })
    }

    /// What a killed run left, if it can be read.
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
        // A kill leaves the old file or the new one.
        let new = self.path.with_extension("new");
        fs::write(&new, text)?;
        Ok(renameat_with(CWD, &new, CWD, &self.path, RenameFlags::empty())?)
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(self.path.with_extension("lock"));
    }
}

/// A line of the file. Names lead nowhere but to settings of the network.
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

    /// A folder that goes with this value.
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

    /// As the kernel ends a process: its files are closed, and nothing else is done.
    fn kill(mut run: ChangedSettings) {
        run.record = None;
        mem::forget(run);
    }

    fn values(ns: &NetNs) -> [String; 2] {
        [FORWARD, RESERVED].map(|key| sysctl::get(ns, key).unwrap())
    }

    #[test]
    fn what_was_before_survives_a_kill() {
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
            assert_eq!(run.set(FORWARD, "1").unwrap(), kills == 0, "it is right already");
            run.set(RESERVED, "8080,30000-32767,40000").unwrap();
            drop(run);
            assert_eq!(values(&ns), before, "{kills} kills");
            assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_is_left_is_put_back_by_the_next() {
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
    fn what_others_changed_stays() {
        let Ok(ns) = NetNs::anonymous() else { return eprintln!("SKIPPED: needs privilege") };
        let folder = Folder::new("others");
        sysctl::set(&ns, FORWARD, "0").unwrap();
        let mut run = ChangedSettings::recorded_in(&ns, &folder.0, "test");
        run.set(FORWARD, "1").unwrap();
        run.set(RESERVED, "30000-32767").unwrap();
        sysctl::set(&ns, RESERVED, "9999").unwrap();
        drop(run);
        assert_eq!(values(&ns), ["0", "9999"]);
        // After a kill, too.
        let mut run = ChangedSettings::recorded_in(&ns, &folder.0, "test");
        run.set(FORWARD, "1").unwrap();
        run.set(RESERVED, "9999,30000-32767").unwrap();
        kill(run);
        sysctl::set(&ns, RESERVED, "7777").unwrap();
        let run = ChangedSettings::recorded_in(&ns, &folder.0, "test");
        assert_eq!(run.others(RESERVED).unwrap(), "7777");
        drop(run);
        assert_eq!(values(&ns), ["0", "7777"]);
        // What somebody set meanwhile is what is put back.
        let mut run = ChangedSettings::recorded_in(&ns, &folder.0, "test");
        run.set(RESERVED, "7777,30000-32767").unwrap();
        sysctl::set(&ns, RESERVED, "8888").unwrap();
        run.set(RESERVED, "8888,30000-32767").unwrap();
        drop(run);
        assert_eq!(values(&ns), ["0", "8888"]);
    }

    #[test]
    fn notes_of_others_are_not_acted_on() {
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
        // Another that lives is no killed one.
        let mut first = ChangedSettings::recorded_in(&ns, &folder.0, "test");
        first.set(RESERVED, "30000-32767").unwrap();
        let second = ChangedSettings::recorded_in(&ns, &folder.0, "test");
        assert_eq!(second.others(RESERVED).unwrap(), "30000-32767");
        drop(second);
        assert_eq!(sysctl::get(&ns, RESERVED).unwrap(), "30000-32767");
        drop(first);
        assert_eq!(sysctl::get(&ns, RESERVED).unwrap(), "");
        let record = Record::open(&ns, &folder.0, "test").unwrap();
        // Another namespace has notes of its own.
        let second = NetNs::anonymous().unwrap();
        assert_ne!(Record::open(&second, &folder.0, "test").unwrap().path, record.path);
    }
}
