//! DELs that the plugin could not deliver while the agent was not running: one file for each,
//! written atomically by rename.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::key::Key;
use super::leases::{file_name, put};
use super::protocol::Call;
use super::request::{Request, Verb};

/// Maximum number of files that are read at a time.
const MAX_FILES: usize = 1000;
/// Maximum length of a file, in bytes.
const MAX_SIZE: u64 = super::protocol::MAX_FRAME as u64;

/// The folder beside the socket into which the plugin writes DELs.
const FOLDER: &str = "cni-queue";

/// See the module's description.
#[derive(Debug)]
pub(super) struct Queue(PathBuf);

/// A queued DEL.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) path: PathBuf,
    /// The attachment to release, or why the file cannot be read.
    pub(super) key: Result<Key, String>,
}

impl Queue {
    /// The queue beside `socket`. Creates it if it is missing.
    pub(super) fn beside(socket: &Path) -> io::Result<Self> {
        let folder = socket.parent().unwrap_or(Path::new("/")).join(FOLDER);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self(folder))
    }

    /// The queued DELs.
    pub(super) fn list(&self) -> io::Result<Vec<Queued>> {
        let mut list = Vec::new();
        for entry in fs::read_dir(&self.0)?.take(MAX_FILES) {
            let entry = entry?;
            let is_file = entry.file_type()?.is_file();
            // A name with a leading dot is still being written.
            if is_file && !entry.file_name().to_string_lossy().starts_with('.') {
                list.push(Queued { key: read(&entry.path()), path: entry.path() });
            }
        }
        list.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(list)
    }

    /// Whether a DEL of this attachment is queued.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.path(key).exists()
    }

    /// Queues a failed DEL, to be tried again.
    pub(super) fn put(&self, key: &Key, call: &Call) -> io::Result<()> {
        let text = serde_json::to_vec(call).map_err(io::Error::other)?;
        put(&self.0, &file_name(key), &text)
    }

    /// Removes the DEL of this attachment, if it is queued.
    pub(super) fn done(&self, key: &Key) {
        // If the removal fails, the DEL is repeated, which does no harm.
        let _ = fs::remove_file(self.path(key));
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.0.join(file_name(key))
    }
}

fn read(path: &Path) -> Result<Key, String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_SIZE {
        return Err(format!("it has {size} bytes"));
    }
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let call: Call = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    // Only the environment is read: the attachment is released whatever happened to the
    // configuration.
    let config = r#"{"cniVersion":"1.1.0","name":"queued"}"#;
    match Request::read(&call.environment, config, None) {
        Ok(Request { verb: Verb::Del(key), .. }) => Ok(key),
        Ok(_) => Err("it is not a DEL".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
