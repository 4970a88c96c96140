//! Messages over TCP: two bytes of length before each (RFC 1035 section 4.2.2).

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;

/// Bytes of answers that a slow client may leave unread before no more queries of it are read.
pub(super) const MAX_OUTPUT: usize = 256 << 10;
/// Most bytes of answers for a client that does not read them: beyond, its connection ends.
pub(super) const MAX_QUEUED: usize = 1 << 20;
/// Room that is kept when all is written.
const KEPT: usize = 4 << 10;
/// Bytes that are read at once, and of queries that wait to be read.
const READ: usize = 16 << 10;

/// A connection that never blocks.
pub(super) struct Stream {
    pub(super) socket: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Where each message ends that waits to be written, counted from the start of the connection.
    ends: VecDeque<u64>,
    /// Bytes written since the start of the connection.
    written: u64,
    /// The other end has closed it, or it failed.
    pub(super) has_ended: bool,
}

impl Stream {
    pub(super) fn new(socket: TcpStream) -> Self {
        // Answers are written whole; without it they would wait for acknowledgements.
        let _ = socket.set_nodelay(true);
        let (input, output, ends) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { socket, input, output, ends, written: 0, has_ended: false }
    }

    /// Whether something is to be written.
    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether the other end reads too slowly.
    pub(super) fn is_crowded(&self) -> bool {
        self.output.len() > MAX_OUTPUT
    }

    /// Messages that are not written, or not to their end.
    pub(super) fn unsent(&self) -> u64 {
        self.ends.len() as u64
    }

    /// Adds a message to what is to be written, and returns whether there was room. Ends a connection for which too much
    /// waits, or for which a message is longer than its length can say.
    pub(super) fn push(&mut self, message: &[u8]) -> bool {
        let has_room = self.output.len() + 2 + message.len() <= MAX_QUEUED;
        let Some(len) = u16::try_from(message.len()).ok().filter(|_| has_room) else {
            self.has_ended = true;
            return false;
        };
        self.output.extend(len.to_be_bytes());
        self.output.extend_from_slice(message);
        self.ends.push_back(self.written + self.output.len() as u64);
        true
    }

    /// Writes what the socket takes.
    pub(super) fn flush(&mut self) {
        while !self.output.is_empty() {
            match write_some(&self.socket, &self.output) {
                Ok(0) => return,
                Ok(len) => {
                    self.output.drain(..len);
                    self.written += len as u64;
                    let whole = self.ends.partition_point(|end| *end <= self.written);
                    self.ends.drain(..whole);
                }
                Err(_) => {
                    self.has_ended = true;
                    return;
                }
            }
        }
        self.output.shrink_to(KEPT);
    }

    /// Reads what is there.
    pub(super) fn fill(&mut self) {
        let start = self.input.len();
        self.input.resize(start + READ, 0);
        let read = read_some(&self.socket, &mut self.input[start..]);
        self.has_ended |= read.is_err();
        let len = read.ok().flatten().unwrap_or(0);
        self.input.truncate(start + len);
    }

    /// Whether a whole message has been read that [`next`](Self::next) has not returned.
    pub(super) fn has_message(&self) -> bool {
        self.first().is_some()
    }

    /// The next whole message.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        let message = self.first()?.to_vec();
        self.input.drain(..2 + message.len());
        Some(message)
    }

    fn first(&self) -> Option<&[u8]> {
        let (len, rest) = self.input.split_first_chunk::<2>()?;
        rest.get(..usize::from(u16::from_be_bytes(*len)))
    }

    /// Bytes that wait to be written.
    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.output.len()
    }
}

/// Writes what a nonblocking socket takes.
fn write_some(mut socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match socket.write(bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        // Still connecting.
        Err(error) if error.kind() == ErrorKind::NotConnected => Ok(0),
        // As if it took nothing: the rest is written when it takes more.
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(0),
        other => other,
    }
}

/// Reads what a nonblocking socket has; `None`: nothing now.
fn read_some(mut socket: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match socket.read(buffer) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(len) => Ok(Some(len)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
            Ok(None)
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
        Err(error) => Err(error),
    }
}
