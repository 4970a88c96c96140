//! `capture`: writes frames of the running switch as pcapng.

mod blocks;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use podswitch_api::{Client, MAX_CAPTURE_FRAMES, MAX_CAPTURE_SECONDS};
use serde_json::json;

use super::ask::Target;
use crate::failure::Failure;
use crate::{Done, print};
use blocks::Blocks;

/// Capture frames of the running switch in a pcapng file, with what happened to each.
///
///   vswitch capture --pod shop/web -w web.pcapng
///   vswitch capture --from shop/web --to shop/db --port 5432 -w db.pcapng
///   vswitch capture --drops --seconds 60 -w drops.pcapng
///   vswitch capture --host 10.0.3.7 --protocol UDP -w - | tshark -r - -T fields -e frame.comment
///
/// The file is for Wireshark, tshark or tcpdump. Each port of the switch is an interface, named
/// after its pod. The comment of a frame tells what happened to it (forwarded, or dropped, why and
/// by which policy), and names both ends, the Service and the backend. A forwarded frame is
/// captured twice: where it was received and where it was sent. Frames are captured as they pass
/// the port: GSO packets unsegmented, tunnel packets with their outer headers. The capture ends
/// after 10 seconds or 10,000 frames unless specified otherwise. All given conditions must hold.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Frames of this pod: those at its port, and those at other ports with one of its addresses.
    #[arg(long, value_name = "NAMESPACE/POD")]
    pod: Option<String>,
    /// One end: NAMESPACE/POD, service/NAMESPACE/NAME, node/NAME or an address. Captures both
    /// directions.
    #[arg(long, value_name = "END", requires = "to")]
    from: Option<String>,
    /// The other end.
    #[arg(long, value_name = "END", requires = "from")]
    to: Option<String>,
    /// One end has this address.
    #[arg(long, value_name = "ADDRESS")]
    host: Option<IpAddr>,
    /// One end has this TCP, UDP or SCTP port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// The protocol: TCP, UDP, SCTP, ICMP, ICMPv6 or a number.
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<String>,
    /// Only received frames that were dropped.
    #[arg(long)]
    drops: bool,
    /// End after this many frames.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=MAX_CAPTURE_FRAMES))]
    count: u64,
    /// End after this many seconds.
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=MAX_CAPTURE_SECONDS))]
    seconds: u64,
    /// Keep this many bytes of each frame. 0: all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    snaplen: u32,
    /// The file to write, or - for standard output.
    #[arg(short, long, value_name = "FILE|-")]
    write: PathBuf,
}

impl Args {
    fn uri(&self) -> String {
        let parameters = [
            ("pod", self.pod.clone()),
            ("from", self.from.clone()),
            ("to", self.to.clone()),
            ("host", self.host.map(|host| host.to_string())),
            ("port", self.port.map(|port| port.to_string())),
            ("protocol", self.protocol.clone()),
            ("drops", self.drops.then(|| "true".to_owned())),
            ("count", Some(self.count.to_string())),
            ("seconds", Some(self.seconds.to_string())),
            ("snaplen", Some(self.snaplen.to_string())),
        ];
        Client::query("/v1/capture", &parameters)
    }
}

/// Where the capture goes.
struct Output<'a> {
    path: &'a Path,
    /// Created with the first data, so that a refused request does not overwrite an existing file.
    opened: Option<Box<dyn Write>>,
}

impl Output<'_> {
    fn is_stdout(&self) -> bool {
        self.path == Path::new("-")
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let output = match &mut self.opened {
            Some(output) => output,
            None => self.opened.insert(match self.path == Path::new("-") {
                true => Box::new(io::stdout()),
                false => Box::new(File::create(self.path)?),
            }),
        };
        output.write_all(bytes)?;
        // Another program may read the file while it grows.
        output.flush()
    }
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    let mut output = Output { path: &args.write, opened: None };
    if output.is_stdout() && io::stdout().is_terminal() {
        let reason = "-w -: a capture is not for a terminal; name a file or a pipe";
        return Err(Failure::Input(reason.to_owned()));
    }
    let (mut blocks, mut failed) = (Blocks::default(), None);
    args.target.client()?.pieces(&args.uri(), |piece| {
        // Write complete blocks only, so that the file is valid wherever it ends.
        match blocks.push(piece, |blocks| output.write(blocks)) {
            Ok(()) => true,
            Err(error) => {
                failed = Some(error);
                false
            }
        }
    })?;
    let path = args.write.display();
    match failed {
        // The reader closed the pipe, as `| head` does.
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        Some(error) => return Err(Failure::Setup(format!("-w {path}: {error}"))),
        None => {}
    }
    let Some(summary) = blocks.summary() else {
        let reason =
            format!("the switch ended the capture early; {path} has the frames until then");
        return Err(Failure::Setup(reason));
    };
    match (json, output.is_stdout()) {
        (true, false) => print::json(&json!({ "file": path.to_string(), "summary": summary })),
        _ => print::note(summary),
    }
    Ok(())
}
