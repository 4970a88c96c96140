//! How long ADDs take: figures to read, run by hand (`--ignored --nocapture`).

use podswitch_core::time::{Clock, Instant};

use super::*;

#[test]
#[ignore = "prints figures"]
fn two_hundred_and_fifty_adds() {
    podswitch_testkit::require_tap!();
    let world = World::new("");
    let switch = world.start(&["--workers", "2"]);
    let containers: Vec<Container> = (0..250).map(|_| Container::new()).collect();
    let one = |container: &Container| {
        let begin = Clock::start();
        let answer = world.of("ADD", container, None, &json!({}));
        assert!(answer.ok, "{answer:?}");
        begin.now().since(Instant::ZERO)
    };
    let report = |what: &str, mut times: Vec<Duration>, whole: Duration| {
        times.sort();
        let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
        println!("{what}: {} in {whole:.2?}, p50 {:.2?}, p99 {:.2?}", times.len(), at(50), at(99));
    };
    let (alone, burst) = containers.split_at(50);
    let begin = Clock::start();
    let times = alone.iter().map(one).collect();
    report("one after the other", times, begin.now().since(Instant::ZERO));
    let begin = Clock::start();
    let times = std::thread::scope(|scope| {
        let parts =
            burst.chunks(25).map(|part| scope.spawn(|| part.iter().map(one).collect::<Vec<_>>()));
        let threads: Vec<_> = parts.collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("it ends")).collect()
    });
    report("8 at a time", times, begin.now().since(Instant::ZERO));
    let begin = Clock::start();
    containers.iter().for_each(|container| world.del(container));
    println!("250 DELs: {:.2?}", begin.now().since(Instant::ZERO));
    assert_eq!(switch.stop(), Some(0));
}
