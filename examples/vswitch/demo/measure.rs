//! What the demo measures: figures of short runs, for a first impression. `cargo bench --bench
//! compare` measures properly.

use std::io::{Read, Write};
use std::net::{Shutdown, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use switch_core::time::Clock;

use super::report::Report;
use super::sockets::{self, Connection, Outcome};
use super::world::{DemoPod, World};
use crate::Done;

/// How long each measurement takes.
const STREAM: Duration = Duration::from_millis(1500);
const IDLE: Duration = Duration::from_millis(1500);
const ROUND_TRIPS: usize = 5000;
const WARM_UP: usize = 500;
/// Longest wait for a datagram to come back.
const LOST: Duration = Duration::from_millis(500);

/// Processor time of the idle switch.
pub(super) fn idle(report: &mut Report) -> Done {
    // What the checks before have set off comes to its end.
    thread::sleep(Duration::from_millis(200));
    let before = processor_time();
    thread::sleep(IDLE);
    let used = processor_time().saturating_sub(before);
    let share = 100.0 * used.as_secs_f64() / IDLE.as_secs_f64();
    report.measured("idle switch", share, "% of a core");
    let outcome = if share < 1.0 { Ok(()) } else { Err(format!("it is {share:.1} %")) };
    report.check("idle: below 1 % of a core", outcome)
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// One TCP stream from pod to pod.
pub(super) fn throughput(world: &World, report: &mut Report) -> Done {
    let (red, green) = (world.pod("red"), world.pod("green"));
    let (blue, black) = (world.pod("blue"), world.pod("black"));
    let mut pairs = vec![(red, green)];
    if red.tap {
        pairs.extend([(red, blue), (blue, black)]);
    }
    for (from, to) in pairs {
        let name = format!("TCP stream {} → {}", from.kind(), to.kind());
        match stream(from, to) {
            Ok(rate) => report.measured(name, rate, "Gbit/s"),
            Err(error) => report.check(name, Err(error))?,
        }
    }
    Ok(())
}

/// Gigabits a second that arrive.
fn stream(from: &DemoPod, to: &DemoPod) -> Outcome<f64> {
    let connection = sockets::connect(&from.namespace, &to.namespace, to.addresses.v4.into())?;
    let Connection { client, server, .. } = connection;
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let block = vec![0x5a; 1 << 18];
            loop {
                let written = (&client).write_all(&block);
                if written.is_err() || enough.load(Relaxed) {
                    break;
                }
            }
            let _ = client.shutdown(Shutdown::Write);
        });
        let (clock, mut received) = (Clock::start(), 0u64);
        let mut buffer = vec![0; 1 << 18];
        let mut elapsed = Duration::ZERO;
        let mut result = Ok(());
        while elapsed < STREAM && result.is_ok() {
            match (&server).read(&mut buffer) {
                Ok(count @ 1..) => received += count as u64,
                Ok(_) => result = Err("it ended early".to_owned()),
                Err(error) => result = Err(format!("read: {error}")),
            }
            elapsed = Duration::from_nanos(clock.now().as_nanos());
        }
        enough.store(true, Relaxed);
        // The writer may wait for room.
        while matches!((&server).read(&mut buffer), Ok(1..)) {}
        result.map(|()| received as f64 * 8.0 / elapsed.as_secs_f64() / 1e9)
    })
}

/// A small datagram there and back.
pub(super) fn round_trip(world: &World, report: &mut Report) -> Done {
    let (red, green) = (world.pod("red"), world.pod("green"));
    let (blue, black) = (world.pod("blue"), world.pod("black"));
    let pairs = if red.tap { vec![(red, green), (blue, black)] } else { vec![(red, green)] };
    for (from, to) in pairs {
        let name = format!("round trip {} ↔ {}", from.kind(), to.kind());
        match round_trips(from, to) {
            Ok(mut times) => {
                times.sort_unstable();
                let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e6;
                report.measured(format!("{name}, p50"), at(50), "µs");
                report.measured(format!("{name}, p99"), at(99), "µs");
            }
            Err(error) => report.check(name, Err(error))?,
        }
    }
    Ok(())
}

fn round_trips(from: &DemoPod, to: &DemoPod) -> Outcome<Vec<Duration>> {
    let address = to.addresses.v4.into();
    let server = sockets::open(&to.namespace, || UdpSocket::bind((address, 0)))?;
    let target = server.local_addr().map_err(|e| e.to_string())?;
    let client =
        sockets::open(&from.namespace, || UdpSocket::bind((sockets::unspecified(address), 0)))?;
    client.connect(target).map_err(|e| e.to_string())?;
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(LOST)).map_err(|e| e.to_string())?;
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 256];
            // An empty datagram ends it; so does silence.
            while let Ok((count @ 1.., who)) = server.recv_from(&mut buffer) {
                if server.send_to(&buffer[..count], who).is_err() {
                    return;
                }
            }
        });
        let (clock, mut buffer) = (Clock::start(), [0; 256]);
        let mut times = Vec::with_capacity(ROUND_TRIPS);
        for round in 0..ROUND_TRIPS + WARM_UP {
            let sent = clock.now();
            client.send(&[0x5a; 18]).map_err(|e| format!("send: {e}"))?;
            client.recv(&mut buffer).map_err(|e| format!("nothing came back: {e}"))?;
            if round >= WARM_UP {
                times.push(clock.now().since(sent));
            }
        }
        let _ = client.send(&[]);
        Ok(times)
    })
}
