//! Files that a run leaves to the next: a line with format, checksum and length, then JSON.
//!
//! Written beside the file and renamed, so that a kill leaves the old one or the new one. What is damaged, cut, too long or
//! of another format is refused.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What the first line begins with.
const MAGIC: &str = "podswitch-kept";
/// Raised with every change of what a file says, or of what that means.
const FORMAT: u32 = 1;
/// Longest file that is read or written, in bytes.
const MOST: usize = 128 << 20;

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// It cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is longer than may be.
    #[error("{0} bytes, at most {MOST} are used")]
    TooLong(u64),
    /// It is none of these files, or cut.
    #[error("it is damaged")]
    Damaged,
    /// Another version has written it.
    #[error("it is of format {0}, this is format {FORMAT}")]
    Format(u32),
    /// It does not say what it should.
    #[error("it is damaged: {0}")]
    Content(#[from] serde_json::Error),
}

/// Writes a file in place of the one before.
pub(super) fn write(path: &Path, content: &impl Serialize) -> Result<(), Unusable> {
    let content = serde_json::to_vec(content)?;
    if content.len() > MOST - 128 {
        return Err(Unusable::TooLong(content.len() as u64));
    }
    let head = format!("{MAGIC} {FORMAT} {:016x} {}\n", checksum(&content), content.len());
    let new = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(head.as_bytes())?;
    file.write_all(&content)?;
    Ok(fs::rename(&new, path)?)
}

/// Reads a file. `None`: there is none.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Unusable> {
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if length > MOST as u64 {
        return Err(Unusable::TooLong(length));
    }
    let bytes = fs::read(path)?;
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(Unusable::Damaged)?;
    let (head, content) = (&bytes[..end], &bytes[end + 1..]);
    let head = str::from_utf8(head).map_err(|_| Unusable::Damaged)?;
    let mut words = head.split(' ');
    let (magic, format) = (words.next(), words.next().and_then(|word| word.parse().ok()));
    let Some(format) = format.filter(|_| magic == Some(MAGIC)) else {
        return Err(Unusable::Damaged);
    };
    if format != FORMAT {
        return Err(Unusable::Format(format));
    }
    let expected = format!("{:016x} {}", checksum(content), content.len());
    if words.collect::<Vec<_>>().join(" ") != expected {
        return Err(Unusable::Damaged);
    }
    Ok(Some(serde_json::from_slice(content)?))
}

/// Removes a file.
pub(super) fn remove(path: &Path) {
    let _ = fs::remove_file(path);
    let _ = fs::remove_file(path.with_extension("new"));
}

/// FNV-1a, 64 bits: against damage, not against forgery. Who may write the folder may do anything to the switch.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("podswitch-kept-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_damaged_or_of_another_format_is_refused() {
        let folder = Folder::new();
        let path = folder.0.join("kept-test");
        assert!(read::<Vec<u32>>(&path).unwrap().is_none());
        write(&path, &vec![1, 2, 3]).unwrap();
        write(&path, &vec![4, 5, 6]).unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), Some(vec![4, 5, 6]));
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
        assert!(matches!(read::<Vec<bool>>(&path), Err(Unusable::Content(_))));
        let good = fs::read(&path).unwrap();
        // Every cut, and every changed byte.
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).unwrap();
            assert!(read::<Vec<u32>>(&path).is_err(), "cut at {length}");
            let mut bad = good.clone();
            bad[length] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(read::<Vec<u32>>(&path).is_err(), "byte {length}");
        }
        let next = String::from_utf8(good).unwrap().replacen(" 1 ", " 2 ", 1);
        fs::write(&path, next).unwrap();
        let error = read::<Vec<u32>>(&path).unwrap_err();
        assert_eq!(error.to_string(), "it is of format 2, this is format 1");
        fs::File::create(&path).unwrap().set_len(MOST as u64 + 1).unwrap();
        assert!(matches!(read::<Vec<u32>>(&path), Err(Unusable::TooLong(_))));
        remove(&path);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    }
}
