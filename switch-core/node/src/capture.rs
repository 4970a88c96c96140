//! Packet captures by name: selects frames by pod, connection or address, and writes them as
//! pcapng. The comment of each frame says what happened to it.

mod comment;
mod interfaces;
mod line;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use podswitch_core::capture::{CaptureFilter, CaptureOptions, CaptureReader, CapturedFrame};
use podswitch_core::control::{ControlError, ControlPlane};
use podswitch_core::engine::Shared;
use podswitch_core::port::pcap::{MAX_RECORD, Packet, PcapNgWriter};

use crate::names::{UnknownName, addresses};
use crate::pod_name::PodName;
use crate::pods::Pods;
use comment::comment;
use interfaces::{Interfaces, to_memory};
pub use line::CapturedLine;

/// What to capture. All given conditions must hold; without conditions all frames are captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureRequest {
    /// A pod, `namespace/name`: frames at its port, and frames at other ports from or to one of its
    /// addresses.
    pub pod: Option<String>,
    /// Both ends of a connection, in the form of [`Node::addresses`](crate::Node::addresses):
    /// frames in both directions.
    pub between: Option<[String; 2]>,
    /// Address of either end.
    pub host: Option<IpAddr>,
    /// TCP, UDP or SCTP port of either end.
    pub port: Option<u16>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Only received frames that were dropped.
    pub drops_only: bool,
    /// Maximum number of bytes to keep of each frame; 0: all.
    pub snap_len: u32,
}

/// Why a capture cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// No object has the name of an end.
    #[error(transparent)]
    UnknownName(#[from] UnknownName),
    /// The switch cannot capture.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// A running capture: a pcapng file, read in pieces. It ends when it is dropped. May be read on any
/// thread.
pub struct Capture {
    reader: CaptureReader,
    writer: PcapNgWriter<Vec<u8>>,
    interfaces: Interfaces,
    shared: Arc<Shared>,
    /// Time of day at the start of the switch's clock, in nanoseconds since 1970.
    epoch_ns: u64,
    frames: u64,
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").field("frames", &self.frames).finish_non_exhaustive()
    }
}

fn filter(
    control: &ControlPlane,
    pods: &Pods,
    request: &CaptureRequest,
) -> Result<CaptureFilter, UnknownName> {
    let snapshot = control.snapshot();
    let place = match &request.pod {
        None => None,
        Some(name) => {
            let port = name.parse().ok().and_then(|pod: PodName| pods.port(&pod));
            let addresses = match (addresses(&snapshot, name), port) {
                (Ok(addresses), _) => addresses,
                // It is attached, but the state does not contain it yet.
                (Err(_), Some(_)) => Vec::new(),
                (Err(unknown), None) => return Err(unknown),
            };
            Some((port.into_iter().collect(), addresses))
        }
    };
    let between = match &request.between {
        None => None,
        Some([from, to]) => Some([addresses(&snapshot, from)?, addresses(&snapshot, to)?]),
    };
    let CaptureRequest { host, port, protocol, .. } = *request;
    Ok(CaptureFilter { place, host, between, port, protocol })
}

impl Capture {
    /// # Errors
    /// A name is unknown, or another capture is running.
    pub(crate) fn start(
        control: &mut ControlPlane,
        pods: &Pods,
        request: &CaptureRequest,
    ) -> Result<Self, CaptureError> {
        let snap_len = match request.snap_len {
            0 => MAX_RECORD,
            len => len.min(MAX_RECORD),
        };
        let options = CaptureOptions {
            filter: filter(control, pods, request)?,
            snap_len: snap_len as usize,
            drops_only: request.drops_only,
        };
        let reader = control.capture(&options)?;
        #[expect(clippy::disallowed_methods, reason = "captures have the time of day")]
        let (now, wall) = (control.clock().now(), SystemTime::now());
        let since_1970 = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let application = concat!("podswitch ", env!("CARGO_PKG_VERSION"));
        let mut writer = to_memory(PcapNgWriter::new(Vec::new(), application));
        let interfaces = Interfaces::of(control, snap_len, &mut writer);
        Ok(Self {
            reader,
            writer,
            interfaces,
            shared: Arc::clone(control.shared()),
            epoch_ns: (since_1970.as_nanos() as u64).saturating_sub(now.as_nanos()),
            frames: 0,
        })
    }

    /// The next piece of the file: frames captured until now, up to `most` frames in total. May be
    /// empty.
    pub fn read(&mut self, most: u64) -> Vec<u8> {
        let Self { reader, writer, interfaces, shared, epoch_ns, frames } = self;
        reader.read(|frame| {
            if *frames < most {
                *frames += 1;
                let interface = interfaces.of_frame(frame, writer);
                to_memory(
                    writer.packet(interface, &packet(frame, *epoch_ns, &comment(frame, shared))),
                );
            }
        });
        std::mem::take(self.writer.get_mut())
    }

    /// As [`read`](Self::read), as values instead of a part of the file.
    pub fn read_lines(&mut self, most: u64) -> Vec<CapturedLine> {
        let Self { reader, shared, epoch_ns, frames, .. } = self;
        let mut lines = Vec::new();
        reader.read(|frame| {
            if *frames < most {
                *frames += 1;
                lines.push(CapturedLine::new(frame, shared, *epoch_ns));
            }
        });
        lines
    }

    /// Number of frames that were read.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Number of frames that were lost because reading was too slow.
    pub fn lost(&self) -> u64 {
        self.reader.lost()
    }

    /// Ends the capture. Returns the end of the file: statistics of each interface. Those of the
    /// first have a comment with the numbers of captured and lost frames, and the reason of the
    /// end.
    pub fn end(mut self, reason: &str) -> Vec<u8> {
        let comment = format!("{} frames captured, {} lost; {reason}", self.frames(), self.lost());
        #[expect(clippy::disallowed_methods, reason = "captures have the time of day")]
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now_ns = since_1970.unwrap_or_default().as_nanos() as u64;
        self.interfaces.statistics(&mut self.writer, now_ns, &comment);
        self.writer.into_inner()
    }
}

fn packet<'a>(frame: &'a CapturedFrame, epoch_ns: u64, comment: &'a str) -> Packet<'a> {
    Packet {
        time_ns: epoch_ns.saturating_add(frame.time.as_nanos()),
        frame: &frame.frame,
        original_len: frame.original_len,
        direction: frame.direction,
        comment,
    }
}
