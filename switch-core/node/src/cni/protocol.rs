//! The protocol between the plugin `podswitch-cni` and the agent: one request and one answer per
//! connection.
//!
//! A frame is its length in bytes, as 32 bits in network byte order, followed by that many bytes of
//! JSON. The plugin passes on its environment and standard input unchanged, and prints the answer.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Version of this protocol.
pub const VERSION: u32 = 1;
/// Maximum length of a frame, in bytes. A network configuration with its previous result has a few
/// thousand; the list of attachments that GC keeps grows with the node.
pub const MAX_FRAME: usize = 4 << 20;

/// A request of the plugin.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    /// [`VERSION`].
    pub version: u32,
    /// The variables `CNI_*`.
    pub environment: BTreeMap<String, String>,
    /// Standard input.
    pub config: String,
    /// How long the plugin waits for the answer, in milliseconds.
    pub budget: u64,
    /// The result of the IPAM plugin that the configuration names.
    #[serde(default)]
    pub ipam: Option<Value>,
}

/// The agent's answer.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// Exit status of the plugin: 0 or 1.
    pub status: u8,
    /// What it prints.
    pub output: String,
}

/// Reads a frame.
///
/// # Errors
/// The connection ended or the frame is too long.
pub fn read_frame(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_FRAME {
        let text = format!("a frame of {length} bytes; the limit is {MAX_FRAME}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    // The length is untrusted: allocate memory only for bytes that arrive.
    let mut frame = Vec::new();
    stream.take(length as u64).read_to_end(&mut frame)?;
    match frame.len() == length {
        true => Ok(frame),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Writes a frame.
///
/// # Errors
/// The connection ended.
pub fn write_frame(stream: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    let mut bytes = (frame.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(frame);
    stream.write_all(&bytes)
}
