//! A compressed archive that is written in parts.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, Header};

/// The most bytes of a part.
const MAX_PART: usize = 32 << 20;

/// See the module's description.
pub(super) struct Archive {
    tar: Builder<GzEncoder<std::fs::File>>,
    folder: String,
    seconds: u64,
}

impl Archive {
    /// Creates the file, readable only by its owner; an existing file is not overwritten. All parts
    /// are in `folder`, with the modification time `seconds` (since 1970).
    pub(super) fn create(path: &Path, folder: &str, seconds: u64) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let tar = Builder::new(GzEncoder::new(file, Compression::default()));
        Ok(Self { tar, folder: folder.to_owned(), seconds })
    }

    /// Adds a file.
    pub(super) fn add(&mut self, name: &str, content: &str) -> io::Result<()> {
        let length = content.len();
        let kept = length.min(MAX_PART);
        let mut content = content.as_bytes()[..kept].to_vec();
        let cut = length - kept;
        if cut > 0 {
            content.extend_from_slice(format!("\n[{cut} bytes more are left out]\n").as_bytes());
        }
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.seconds);
        self.tar.append_data(&mut header, format!("{}/{name}", self.folder), &*content)
    }

    /// Writes the end.
    pub(super) fn finish(self) -> io::Result<()> {
        self.tar.into_inner()?.finish()?.sync_all()
    }
}
