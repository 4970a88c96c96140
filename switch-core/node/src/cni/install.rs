//! Installs the plugin and its configuration where the runtime looks for them, and restores them.
//!
//! A file is written under a temporary name, synced, and renamed: a runtime may execute or read it
//! at any time, and a binary that is being executed cannot be overwritten ("text file busy"). The
//! configuration is written last and stays when the switch stops. While it exists without a running
//! agent, STATUS and ADD report that.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// File name of the plugin.
pub const BINARY: &str = "podswitch-cni";
/// File name of the configuration. It sorts before most others; runtimes use the first one.
pub const CONFIGURATION: &str = "10-podswitch.conflist";

/// What is installed, and where.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Install {
    /// The plugin, to be copied.
    pub plugin: PathBuf,
    /// The runtime's plugin folder. `None`: the plugin is installed by other means.
    pub bin_dir: Option<PathBuf>,
    /// The runtime's configuration folder. `None`: the configuration is written by other means.
    pub conf_dir: Option<PathBuf>,
    /// The agent's socket as the runtime's processes see it.
    pub socket: PathBuf,
}

impl Install {
    /// Options without folders: nothing is installed until they are set.
    pub fn new(plugin: impl Into<PathBuf>, socket: impl Into<PathBuf>) -> Self {
        Self { plugin: plugin.into(), bin_dir: None, conf_dir: None, socket: socket.into() }
    }

    /// Installs what is missing or differs: the plugin, then the configuration.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn apply(&self) -> io::Result<Vec<String>> {
        let mut done = Vec::new();
        if let Some(folder) = &self.bin_dir {
            let content = fs::read(&self.plugin).map_err(|e| named(&self.plugin, &e))?;
            if put(folder, BINARY, &content, 0o755)? {
                done.push(format!("{} is installed", folder.join(BINARY).display()));
            }
        }
        if let Some(folder) = &self.conf_dir {
            let path = folder.join(CONFIGURATION);
            let found = fs::read_to_string(&path).ok();
            let content = configuration(&self.socket, found.as_deref());
            if put(folder, CONFIGURATION, content.as_bytes(), 0o644)? {
                done.push(format!("{} is installed", path.display()));
            }
        }
        Ok(done)
    }
}

/// Keeps the files installed.
#[derive(Debug)]
pub(super) struct Installer {
    install: Install,
    /// The last reported error, to report it only once.
    said: String,
}

impl Installer {
    pub(super) fn new(install: Install) -> Self {
        Self { install, said: String::new() }
    }

    /// Restores missing files. Returns messages to report.
    pub(super) fn repair(&mut self) -> Vec<String> {
        match self.install.apply() {
            Ok(done) => {
                self.said.clear();
                done
            }
            Err(error) => {
                let text = error.to_string();
                if self.said == text {
                    return Vec::new();
                }
                self.said.clone_from(&text);
                vec![text]
            }
        }
    }
}

/// The configuration list, with the plugins that others appended to the installed one.
fn configuration(socket: &Path, found: Option<&str>) -> String {
    let own = json!({
        "type": BINARY,
        "socket": socket.display().to_string(),
        "capabilities": {
            "portMappings": true, "mac": true, "ips": true, "ipRanges": true, "dns": true,
        },
    });
    let found: Option<Map<String, Value>> = found.and_then(|text| serde_json::from_str(text).ok());
    let appended = found.as_ref().and_then(|found| found.get("plugins")?.as_array());
    let is_own = |plugin: &&Value| plugin.get("type").and_then(Value::as_str) == Some(BINARY);
    let mut plugins = vec![own];
    plugins.extend(appended.into_iter().flatten().filter(|p| !is_own(p)).cloned());
    let list = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": "podswitch",
        "plugins": plugins,
    });
    let mut text = serde_json::to_string_pretty(&list).unwrap_or_default();
    text.push('\n');
    text
}

/// Writes a file unless it exists with this content. Returns whether it was written.
fn put(folder: &Path, name: &str, content: &[u8], mode: u32) -> io::Result<bool> {
    let path = folder.join(name);
    let is_there = fs::read(&path).is_ok_and(|found| found == content)
        && fs::metadata(&path).is_ok_and(|found| found.permissions().mode() & 0o7777 == mode);
    if is_there {
        return Ok(false);
    }
    let temporary = folder.join(format!(".{name}.new"));
    let write = || {
        fs::create_dir_all(folder)?;
        // A left-over file may have another mode, or be a link.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        // Independent of the process's umask.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, &path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| named(&path, &error))?;
    Ok(true)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_restored_and_appended_plugins_stay() {
        let folder = std::env::temp_dir().join(format!("cni-install-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let plugin = folder.join("plugin");
        fs::write(&plugin, "#!/bin/sh\n").unwrap();
        let (bin, conf) = (folder.join("bin"), folder.join("net.d"));
        let install = Install {
            bin_dir: Some(bin.clone()),
            conf_dir: Some(conf.clone()),
            ..Install::new(&plugin, "/run/podswitch/cni.sock")
        };
        assert_eq!(install.apply().unwrap().len(), 2);
        assert_eq!(install.apply().unwrap(), [""; 0], "nothing to do");
        let path = conf.join(CONFIGURATION);
        let list: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(list["plugins"][0]["socket"], "/run/podswitch/cni.sock");
        assert_eq!(list["name"], "podswitch");
        assert_eq!(fs::metadata(bin.join(BINARY)).unwrap().permissions().mode() & 0o777, 0o755);

        let mut more = list.clone();
        more["plugins"].as_array_mut().unwrap().push(json!({"type": "istio-cni", "x": 1}));
        more["plugins"][0]["socket"] = json!("/elsewhere");
        fs::write(&path, more.to_string()).unwrap();
        assert_eq!(install.apply().unwrap().len(), 1);
        let list: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(list["plugins"][0]["socket"], "/run/podswitch/cni.sock");
        assert_eq!(list["plugins"][1], json!({"type": "istio-cni", "x": 1}));

        fs::remove_dir_all(&conf).unwrap();
        fs::write(bin.join(BINARY), "old").unwrap();
        assert_eq!(install.apply().unwrap().len(), 2);
        fs::remove_file(&plugin).unwrap();
        let error = install.apply().unwrap_err().to_string();
        assert!(error.starts_with(plugin.to_str().unwrap()), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
