//! `restart`: the effect of a restart of the switch on the pods of its node: planned (`run --keep`
//! gets SIGTERM and is started again), after `kill -9` with and without a holder that keeps the devices, after
//! kills in quick succession, and by hand-over to another one that starts
//! beside it (`run --take-over`).
//!
//! `cargo bench --bench restart -- --help`. The switch is `vswitch run` as a process of its own, on
//! a node that is a network namespace with two pods. Everything is removed with this process, the
//! run directory at its end.
//!
//! * `world`: node, pods, Service, and the switch.
//! * `load`: datagrams at a steady rate, and TCP connections, through the ClusterIP.
//! * `report`: percentiles, as a table.

mod load;
mod report;
mod world;

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Parser;
use podswitch_core::time::Clock;
use podswitch_linux::userns;
use rustix::process::{Signal, set_parent_process_death_signal};

use load::{Connections, Datagrams, Requests};
use report::Table;
use world::{End, World};

/// Rounds after which idle connections are kept from timing out: UDP connections live for two minutes.
const ROUNDS_OF_IDLE: u16 = 20;

/// The outcome, or the error as text.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The program starts itself with this argument to be the switch.
const SWITCH: &str = "PODSWITCH_BENCH_IS_SWITCH";

/// Time for traffic before and after a restart.
const CALM: Duration = Duration::from_millis(500);

/// How often a switch is killed in one round of repeated kills.
const KILLS: u32 = 5;

/// Restart the switch of a node under load: how long its pods are cut off, and what is lost.
///
/// Needs root. Progress goes to the standard error, the table to the standard output.
///
/// Exit status: 0 if it was measured, 1 if it failed.
#[derive(Parser, Debug)]
#[command(name = "restart")]
struct Args {
    /// Restarts of each kind.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Datagrams a second through the ClusterIP.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=200_000))]
    rate: u32,
    /// TCP connections through the ClusterIP that stay open during the restart.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    connections: u32,
    /// Only hand-overs.
    #[arg(long)]
    hand_over: bool,
    /// Connections that a start without load restores, and that hand-overs are repeated with; 0 skips these
    /// measurements.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(0..=120_000))]
    restore: u32,
    /// Number of forwarding threads.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=8))]
    workers: u16,
    /// Cargo passes it to benchmarks.
    #[arg(long, hide = true)]
    bench: bool,
    /// Cargo and others pass it to tests.
    #[arg(long, hide = true)]
    test: bool,
}

fn main() -> ExitCode {
    if std::env::var_os(SWITCH).is_some() {
        // The switch ends with this process, for any reason; its holder does not end with it.
        if std::env::args().nth(1).is_some_and(|command| command == "run") {
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
        }
        return podswitch_vswitch::main();
    }
    let args = Args::parse();
    // `cargo test --benches` starts benchmarks without `--bench`.
    if args.test || !args.bench {
        println!("restart measures under `cargo bench` only");
        return ExitCode::SUCCESS;
    }
    if !userns::has_privilege() {
        println!("SKIPPED: restart needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN)");
        return ExitCode::SUCCESS;
    }
    match run(&args) {
        Ok(table) => {
            print!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Outcome<Table> {
    load::raise_descriptor_limit();
    let mut world = World::new(args.workers)?;
    let mut table = Table::new(args);
    world.start()?;
    under_load(args, End::HandOver, &mut world, &mut table)?;
    if args.restore > 0 {
        // Their servers' ports are those of the load.
        drop(load::open_many(&world, args.restore)?);
        under_load(args, End::FullHandOver, &mut world, &mut table)?;
    }
    if args.hand_over {
        world.finish()?;
        return Ok(table);
    }
    for end in [End::Stop, End::Kill, End::KillOften, End::KillAlone] {
        let is_held = end != End::KillAlone;
        if is_held != world.is_held {
            world.end(End::Stop)?;
            world.is_held = is_held;
            world.start()?;
        }
        under_load(args, end, &mut world, &mut table)?;
    }
    world.is_held = true;
    if args.restore > 0 {
        restoring(args, &mut world, &mut table)?;
    }
    world.finish()?;
    Ok(table)
}

/// Restarts under load.
fn under_load(args: &Args, end: End, world: &mut World, table: &mut Table) -> Outcome<()> {
    let datagrams = Datagrams::start(world, args.rate)?;
    let mut connections = Connections::open(world, args.connections)?;
    let requests = Requests::start(world)?;
    let clock = Clock::start();
    for round in 1..=args.rounds {
        thread::sleep(CALM);
        datagrams.reset();
        requests.reset();
        thread::sleep(CALM);
        connections.send_all();
        if end == End::FullHandOver && round % ROUNDS_OF_IDLE == 0 {
            load::send_to_all(world, args.restore)?;
            thread::sleep(CALM);
            datagrams.reset();
            requests.reset();
        }
        if !end.is_hand_over() {
            let kills = if end == End::KillOften { KILLS } else { 1 };
            for _ in 1..kills {
                world.end(end)?;
                world.start()?;
                thread::sleep(CALM);
            }
            world.end(end)?;
            // Both ends send while no switch is running.
            connections.send_all();
        }
        let began = clock.now();
        match end {
            End::HandOver | End::FullHandOver => world.hand_over()?,
            End::Stop | End::Kill | End::KillAlone | End::KillOften => world.start()?,
        }
        let started = clock.now().since(began);
        datagrams.wait_until_flowing()?;
        thread::sleep(CALM);
        let (blocked, lost) = datagrams.read();
        let gone = connections.check();
        let answer = requests.longest()?;
        eprintln!(
            "{} {round}: blocked {blocked:?}, TCP for {answer:?}, {lost} datagrams and {gone} connections lost, ready in {started:?}, {}",
            end.name(),
            world.drops()?
        );
        table.add(end, blocked, answer, lost, gone, started);
    }
    Ok(())
}

/// Starts with and without connections to be restored, without other load.
fn restoring(args: &Args, world: &mut World, table: &mut Table) -> Outcome<()> {
    let clock = Clock::start();
    for round in 1..=args.rounds.min(10) {
        for count in [0, args.restore] {
            world.forget_connections()?;
            world.start()?;
            let servers = load::open_many(world, count)?;
            let open = world.connections(u64::from(count))?;
            drop(servers);
            world.end(End::Kill)?;
            let began = clock.now();
            world.start()?;
            let started = clock.now().since(began);
            let restored = world.connections(u64::from(count))?;
            eprintln!("restore {round}: {restored} of {open} connections, ready in {started:?}");
            table.add_restore(count > 0, restored, started);
        }
    }
    Ok(())
}
