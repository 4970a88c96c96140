//! Which endpoints take new connections: readiness, termination, affinity, spread.

use crate::play::{Outcome, Play, udp};
use crate::world::{End, FAMILIES, Host, PORTS, X, Y, Z, service, slices, vip, web};

/// By which ports the outcomes' packets left, each once, sorted.
fn ports(outcomes: &[Outcome]) -> Vec<String> {
    let mut ports: Vec<String> = outcomes.iter().map(|o| o.sent().port).collect();
    ports.sort();
    ports.dedup();
    ports
}

/// Where connections of forty ports of `client` go.
#[track_caller]
pub(crate) fn spread(play: &mut Play, client: Host, v6: bool, base: u16) -> Vec<String> {
    let all: Vec<_> =
        (base..base + 40).map(|port| udp(client.at(v6, port), vip(10, v6, 80))).collect();
    ports(&play.send_all(client, &all))
}

#[test]
fn should_use_ready_endpoints_only() {
    let ends = [End::pod(Y), End::pod(Z).state(false, true, false)];
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &ends));
        assert_eq!(spread(&mut play, X, v6, 4000), ["a_y"]);
    }
}

/// What is left out is as the API says (S1): ready, not terminating.
#[test]
fn should_take_missing_conditions_for_good_ones() {
    let ends = [End::pod(Y), End::pod(Z).with("conditions: {}")];
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &ends));
        assert_eq!(spread(&mut play, X, v6, 4000), ["a_y", "a_z"]);
    }
}

#[test]
fn should_fall_back_to_terminating_endpoints_when_there_are_no_ready_ones() {
    let terminating = End::pod(Z).state(false, true, true);
    for v6 in FAMILIES {
        let ends = [End::pod(Y).state(false, false, false), terminating.clone()];
        let mut play = Play::new(&web(PORTS, &ends));
        assert_eq!(spread(&mut play, X, v6, 4000), ["a_z"]);
        // As soon as one is ready it takes all that is new.
        play.change(&web(PORTS, &[End::pod(Y), terminating.clone()]));
        assert_eq!(spread(&mut play, X, v6, 5000), ["a_y"]);
        // Neither ready nor serving: no last resort (and no silence).
        play.change(&web(PORTS, &[End::pod(Z).state(false, false, true)]));
        let asked = udp(X.at(v6, 6000), vip(10, v6, 80));
        play.send(X, &asked).refused("service_no_endpoints", &asked);
    }
}

#[test]
fn should_serve_unready_endpoints_of_services_that_publish_them() {
    let spec = format!("publishNotReadyAddresses: true, {PORTS}");
    let ends = [End::pod(Y).state(false, false, false), End::pod(Z)];
    for v6 in FAMILIES {
        let mut play = Play::new(&web(&spec, &ends));
        assert_eq!(spread(&mut play, X, v6, 4000), ["a_y", "a_z"]);
    }
}

#[test]
fn should_spread_connections_evenly() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y), End::pod(Z)]));
        let all: Vec<_> =
            (10_000..11_000).map(|port| udp(X.at(v6, port), vip(10, v6, 80))).collect();
        let outcomes = play.send_all(X, &all);
        let y = outcomes.iter().filter(|o| o.sent().port == "a_y").count() as f64;
        let chi_square = (y - 500.0).powi(2) / 500.0 * 2.0;
        assert!(chi_square < 10.8, "one degree of freedom, a thousandth: {y}");
    }
}

/// S9: the client's connections stay together, for so many seconds after the last began.
#[test]
fn should_have_session_affinity_work() {
    let spec = format!("sessionAffinity: ClientIP, {PORTS}");
    let ends = [End::pod(Y), End::pod(Z)];
    for v6 in FAMILIES {
        let mut play = Play::new(&web(&spec, &ends));
        let homes: Vec<String> = [X, Y, Z]
            .iter()
            .map(|&client| {
                let home = spread(&mut play, client, v6, 4000);
                assert_eq!(home.len(), 1, "{client:?}: {home:?}");
                home.into_iter().next().expect("one")
            })
            .collect();
        // The other protocols are Service ports of their own, with the same choice by hash.
        let again = spread(&mut play, X, v6, 5000);
        assert_eq!(again, homes[..1]);
    }
}

/// Whom the hash would choose counts only for those whom no pin holds.
#[test]
fn should_have_session_affinity_timeout_work() {
    let spec = format!(
        "sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: 100}}}}, {PORTS}"
    );
    let both = web(&spec, &[End::pod(Y), End::pod(Z)]);
    for v6 in FAMILIES {
        let mut play = Play::new(&both);
        let home = spread(&mut play, X, v6, 4000);
        let left = if home == ["a_y"] { Z } else { Y };
        // Its backend stops taking connections: another, to which the client is then pinned.
        play.change(&web(&spec, &[End::pod(left)]));
        assert_eq!(spread(&mut play, X, v6, 5000), [left.file()]);
        play.change(&both);
        play.pass(99.0);
        assert_eq!(spread(&mut play, X, v6, 6000), [left.file()], "pinned still");
        play.pass(99.0);
        assert_eq!(spread(&mut play, X, v6, 7000), [left.file()], "use refreshed it");
        play.pass(101.0);
        assert_eq!(spread(&mut play, X, v6, 8000), home, "over");
    }
}

#[test]
fn should_be_able_to_switch_session_affinity() {
    let ends = [End::pod(Y), End::pod(Z)];
    let sticky = web(&format!("sessionAffinity: ClientIP, {PORTS}"), &ends);
    let loose = web(&format!("sessionAffinity: None, {PORTS}"), &ends);
    for v6 in FAMILIES {
        let mut play = Play::new(&loose);
        assert_eq!(spread(&mut play, X, v6, 4000).len(), 2);
        play.change(&sticky);
        assert_eq!(spread(&mut play, X, v6, 5000).len(), 1);
        play.change(&loose);
        assert_eq!(spread(&mut play, X, v6, 6000).len(), 2);
    }
}

/// Affinity is by the client's own address, whatever its connections share besides.
#[test]
fn should_keep_affinity_apart_by_service() {
    let spec = format!("sessionAffinity: ClientIP, {PORTS}");
    let [one, other] = [End::pod(Y), End::pod(Z)];
    let state = |web_ends: &[End]| {
        [web(&spec, web_ends), service("api", 11, &spec), slices("api", std::slice::from_ref(&one))]
            .concat()
    };
    for v6 in FAMILIES {
        let mut play = Play::new(&state(std::slice::from_ref(&other)));
        let api = udp(X.at(v6, 4000), vip(11, v6, 80));
        play.send(X, &api).by("a_y");
        assert_eq!(spread(&mut play, X, v6, 5000), ["a_z"]);
    }
}

/// Every node and every start of the switch chooses alike.
#[test]
fn should_choose_the_same_after_a_restart() {
    let state = web(PORTS, &[End::pod(Y), End::pod(Z)]);
    for v6 in FAMILIES {
        let all: Vec<_> = (4000..4064).map(|port| udp(X.at(v6, port), vip(10, v6, 80))).collect();
        let chosen = |play: &mut Play| -> Vec<String> {
            play.send_all(X, &all).iter().map(|o| o.sent().port).collect()
        };
        let first = chosen(&mut Play::new(&state));
        assert_eq!(chosen(&mut Play::new(&state)), first);
        // The order of endpoints in their slice says nothing.
        let turned = web(PORTS, &[End::pod(Z), End::pod(Y)]);
        assert_eq!(chosen(&mut Play::new(&turned)), first);
        // Another cluster's key chooses otherwise.
        let mut other = Play::new(&state).with(&["--hash-key", "0123456789abcdef0123456789abcdef"]);
        assert_ne!(chosen(&mut other), first);
    }
}
