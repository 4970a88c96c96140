//! Holder and switch in one process. What happens to processes and interfaces is tested with the program.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use podswitch_core::port::DeviceFiles;
use podswitch_linux::handover::Inherited;

use super::*;
use crate::boot::boot_id;

/// A holder on a thread, in a folder of its own.
struct Served {
    folder: PathBuf,
    stop: UnixStream,
    thread: JoinHandle<HoldEnd>,
}

const LONG: Duration = Duration::from_secs(60);

fn serve(name: &str, bound: Duration) -> Served {
    let folder = std::env::temp_dir().join(format!("podswitch-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let mut holder = Holder::bind(&folder).unwrap();
    let (stop, stopped) = UnixStream::pair().unwrap();
    let options = HoldOptions { bound, stays: false };
    let thread = thread::spawn(move || {
        use std::os::fd::AsFd as _;
        holder.serve(options, stopped.as_fd()).unwrap()
    });
    Served { folder, stop, thread }
}

impl Served {
    fn connect(&self) -> (HolderLink, Inherited) {
        HolderLink::connect(&self.folder).unwrap()
    }

    #[track_caller]
    fn ends(self, expected: HoldEnd) {
        assert_eq!(self.thread.join().unwrap(), expected);
        assert!(!self.folder.join(HOLD_SOCKET).exists());
        fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// A device with `count` files; whether any of them is open anywhere shows at the other ends.
fn device(key: &str, count: usize) -> (DeviceFiles, Vec<UnixStream>) {
    let pairs = (0..count).map(|_| UnixStream::pair().unwrap());
    let (own, others): (Vec<_>, Vec<_>) = pairs.unzip();
    let files = own.into_iter().map(|end| Arc::new(OwnedFd::from(end))).collect();
    (DeviceFiles { key: key.into(), files }, others)
}

fn is_open(mut other: &UnixStream) -> bool {
    other.write(b"x").is_ok()
}

/// Waits until nobody has it open.
fn closes(other: &UnixStream) {
    while is_open(other) {
        thread::sleep(Duration::from_millis(1));
    }
}

fn names(files: &Inherited) -> Vec<String> {
    files.close_rest()
}

#[test]
fn files_outlive_their_switch() {
    let served = serve("hold", LONG);
    let (mut link, files) = served.connect();
    assert_eq!(names(&files), [""; 0]);
    // More than go into one message, and a queue that is replaced.
    let (many, many_ends) = device("many", 600);
    let (one, one_ends) = device("one", 1);
    let (two, two_ends) = device("two", 2);
    link.tell(&[one, many, two]).unwrap();
    let (other, other_ends) = device("one", 1);
    link.tell(&[other]).unwrap();
    for end in many_ends.iter().chain(&one_ends).chain(&two_ends) {
        closes(end);
    }
    assert!(is_open(&other_ends[0]));
    // It dies: nobody else has the file open.
    drop(link);
    let (link, files) = served.connect();
    assert_eq!(names(&files), ["one"]);
    assert!(is_open(&other_ends[0]), "the holder has it still");
    link.end();
    closes(&other_ends[0]);
    served.ends(HoldEnd::Planned);
}

#[test]
fn nobody_comes_back() {
    let served = serve("hold-bound", Duration::from_millis(50));
    let (mut link, _) = served.connect();
    let (one, ends) = device("one", 1);
    link.tell(&[one]).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert!(is_open(&ends[0]), "the time begins with the switch's end");
    drop(link);
    closes(&ends[0]);
    served.ends(HoldEnd::Alone);
}

#[test]
fn there_is_one_holder() {
    let mut served = serve("hold-one", LONG);
    let error = Holder::bind(&served.folder).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    served.stop.write_all(b"x").unwrap();
    served.ends(HoldEnd::Stopped);
}

/// What it holds is of no use to others, and must not be open when they open the devices themselves.
#[test]
fn another_format_or_boot_gets_nothing() {
    for (n, (format, boot)) in
        [(FORMAT + 1, boot_id()), (FORMAT, "before".to_owned())].into_iter().enumerate()
    {
        let served = serve(&format!("hold-format-{n}"), LONG);
        let (mut link, _) = served.connect();
        let (one, ends) = device("one", 1);
        link.tell(&[one]).unwrap();
        let channel = Channel::connect(&served.folder.join(HOLD_SOCKET)).unwrap();
        send(&channel, &Message::Hello { format, boot, listen: None }, &[]).unwrap();
        let error = receive(&channel, LONG).unwrap_err();
        assert!(matches!(error, HoldError::Refused(_)), "{error}");
        closes(&ends[0]);
        end_holder(&served.folder);
        served.ends(HoldEnd::Planned);
    }
}

/// Whoever says nothing, or rubbish, changes nothing.
#[test]
fn others_change_nothing() {
    let served = serve("hold-others", LONG);
    let (mut link, _) = served.connect();
    let (one, ends) = device("one", 1);
    link.tell(&[one]).unwrap();
    let path = served.folder.join(HOLD_SOCKET);
    let silent = Channel::connect(&path).unwrap();
    let rubbish = Channel::connect(&path).unwrap();
    rubbish.send(b"{}", &[]).unwrap();
    drop(Channel::connect(&path).unwrap());
    // By then it has seen all of them.
    let (two, _ends) = device("two", 1);
    link.tell(&[two]).unwrap();
    closes(&ends[0]);
    drop((silent, rubbish));
    link.end();
    served.ends(HoldEnd::Planned);
}

/// More than it holds: the switch hears it, and goes on without.
#[test]
fn names_have_a_bound() {
    let served = serve("hold-names", LONG);
    let (mut link, _) = served.connect();
    let (long, _ends) = device(&"x".repeat(300), 1);
    link.tell(&[long]).unwrap();
    let error = receive(link.channel(), LONG).unwrap_err();
    assert!(matches!(error, HoldError::Refused(_)), "{error}");
    drop(link);
    end_holder(&served.folder);
    served.ends(HoldEnd::Planned);
}
