//! The forwarder in virtual time, with servers that the test plays.

use domain::base::Message;
use domain::base::iana::Rcode;
use podswitch_dns::{Name, query};

use super::super::message::{self, Read};
use super::super::upstreams::Stub;
use super::*;

const A: &str = "192.0.2.1:53";
const B: &str = "192.0.2.2:53";

fn forwarder(servers: &[&str]) -> Forwarder {
    let servers = servers.iter().map(|it| it.parse().unwrap());
    let mut upstreams = Upstreams::default();
    upstreams.set(Stub::new(Name::parse(".").unwrap(), servers));
    Forwarder::new(upstreams, Arc::default())
}

fn asked(name: &str, id: u16) -> Asked {
    let mut bytes = query(id, &Name::parse(name).unwrap(), 1, Some(1232));
    // The case as it is written.
    let mut at = 12;
    for label in name.split('.') {
        bytes[at + 1..][..label.len()].copy_from_slice(label.as_bytes());
        at += 1 + label.len();
    }
    match message::read(&bytes) {
        Read::Query(asked) => asked,
        other => panic!("{other:?}"),
    }
}

fn ask(forwarder: &mut Forwarder, now: Instant, name: &str, id: u16, client: u8) {
    let client = Client::Udp(0, format!("10.1.0.{client}:4000").parse().unwrap());
    let asked = asked(name, id);
    let waiter = Waiter { client, asked: asked.clone(), limit: 1232, aliases: None };
    forwarder.ask(now, asked, waiter);
}

/// The next query, without probes.
fn sent(forwarder: &mut Forwarder) -> Option<(u64, SocketAddr, Vec<u8>, bool)> {
    while let Some(action) = forwarder.take() {
        if let Action::Send { flight, to, query, by_tcp } = action {
            return Some((flight, to, query, by_tcp));
        }
    }
    None
}

fn answers(forwarder: &mut Forwarder) -> Vec<Vec<u8>> {
    let mut list = Vec::new();
    while let Some(action) = forwarder.take() {
        if let Action::Answer { message, .. } = action {
            list.push(message);
        }
    }
    list
}

/// A reply with one address.
fn reply(query: &[u8], ttl: u32, rcode: u8) -> Vec<u8> {
    let question = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let mut bytes = query[..question].to_vec();
    bytes[2] |= 0x80;
    bytes[3] = 0x80 | rcode;
    bytes[6..12].copy_from_slice(&[0, u8::from(rcode == 0), 0, 0, 0, 0]);
    if rcode == 0 {
        bytes.extend([0xc0, 12, 0, 1, 0, 1]);
        bytes.extend(ttl.to_be_bytes());
        bytes.extend([0, 4, 198, 51, 100, 7]);
    }
    bytes
}

fn rcode(message: &[u8]) -> Rcode {
    Message::from_octets(message).unwrap().header().rcode()
}

#[test]
fn one_query_serves_all_that_ask_the_same_and_is_kept() {
    let mut forwarder = forwarder(&[A]);
    let now = Instant::from_secs(100);
    ask(&mut forwarder, now, "www.example.com", 1, 2);
    ask(&mut forwarder, now, "WWW.example.com", 2, 3);
    let (flight, to, query, by_tcp) = sent(&mut forwarder).unwrap();
    assert_eq!((to, by_tcp), (A.parse().unwrap(), false));
    assert!(sent(&mut forwarder).is_none());
    // Another id, and another question, are not the reply.
    let mut forged = reply(&query, 300, 0);
    forged[0] ^= 1;
    forwarder.reply(now, flight, &forged);
    let mut forged = reply(&query, 300, 0);
    forged[13] ^= 1;
    forwarder.reply(now, flight, &forged);
    assert!(answers(&mut forwarder).is_empty());
    assert_eq!(forwarder.counters.mismatched.get(), 2);
    forwarder.reply(now, flight, &reply(&query, 300, 0));
    let got = answers(&mut forwarder);
    assert_eq!(got.iter().map(|it| it[1]).collect::<Vec<_>>(), [1, 2]);
    // The case of each client's question.
    assert_eq!((&got[0][13..16], &got[1][13..16]), (&b"www"[..], &b"WWW"[..]));
    // The time to live is bounded, and goes on.
    let later = now + Duration::from_secs(20);
    ask(&mut forwarder, later, "www.example.com", 3, 2);
    let got = answers(&mut forwarder);
    assert!(got[0].windows(10).any(|it| it == [0, 0, 0, 10, 0, 4, 198, 51, 100, 7]), "{got:?}");
    ask(&mut forwarder, now + Duration::from_secs(31), "www.example.com", 4, 2);
    assert!(sent(&mut forwarder).is_some());
}

#[test]
fn another_server_is_asked_if_one_does_not_reply_or_fails() {
    let mut forwarder = forwarder(&[A, B]);
    let now = Instant::from_secs(100);
    ask(&mut forwarder, now, "www.example.com", 1, 2);
    let (flight, first, _, _) = sent(&mut forwarder).unwrap();
    forwarder.failed(now, flight);
    let (again, second, query, _) = sent(&mut forwarder).unwrap();
    assert_eq!(again, flight);
    assert_ne!(first, second);
    forwarder.reply(now, flight, &reply(&query, 1, 0));
    assert_eq!(rcode(&answers(&mut forwarder)[0]), Rcode::NOERROR);
    // The one that failed is queried last for a while.
    for id in 0..8 {
        ask(&mut forwarder, now, &format!("{id}.example.com"), id, 2);
        assert_eq!(sent(&mut forwarder).unwrap().1, second);
    }
    // Nobody replies.
    ask(&mut forwarder, now, "none.example.com", 9, 2);
    let (flight, ..) = sent(&mut forwarder).unwrap();
    for _ in 0..MAX_TRIES {
        forwarder.failed(now, flight);
    }
    assert_eq!(rcode(answers(&mut forwarder).last().unwrap()), Rcode::SERVFAIL);
}

#[test]
fn a_truncated_reply_is_asked_for_by_tcp() {
    let mut forwarder = forwarder(&[A]);
    let now = Instant::from_secs(100);
    ask(&mut forwarder, now, "www.example.com", 1, 2);
    let (flight, _, query, _) = sent(&mut forwarder).unwrap();
    let mut cut = reply(&query, 300, 0);
    cut[2] |= 0x02;
    forwarder.reply(now, flight, &cut);
    let (_, _, query, by_tcp) = sent(&mut forwarder).unwrap();
    assert!(by_tcp);
    forwarder.reply(now, flight, &reply(&query, 300, 0));
    assert_eq!(answers(&mut forwarder).len(), 1);
}

#[test]
fn one_client_leaves_room_to_others() {
    let mut forwarder = forwarder(&[A]);
    let now = Instant::from_secs(100);
    // A busy client of an idle resolver is not refused.
    for id in 0..MAX_IDLE as u16 {
        ask(&mut forwarder, now, &format!("{id}.example.com"), id, 2);
    }
    assert_eq!(std::iter::from_fn(|| sent(&mut forwarder)).count(), MAX_IDLE);
    assert_eq!(forwarder.counters.refused.get(), 0);
    for id in 1000..1100 {
        ask(&mut forwarder, now, &format!("{id}.example.com"), id, 2);
    }
    assert_eq!(forwarder.flights.len(), MAX_IDLE);
    assert!(answers(&mut forwarder).iter().all(|it| rcode(it) == Rcode::SERVFAIL));
    assert_eq!(forwarder.counters.refused.get(), 100);
    // Another one is served meanwhile, until it has its share.
    for id in 0..1000 {
        ask(&mut forwarder, now, &format!("{id}.example.net"), id, 3);
    }
    assert_eq!(forwarder.flights.len(), MAX_IDLE + MAX_BEGUN);
    assert_eq!(answers(&mut forwarder).len(), 1000 - MAX_BEGUN);
    // It may wait for what others began.
    for id in 0..MAX_IDLE as u16 {
        ask(&mut forwarder, now, &format!("{id}.example.com"), id, 3);
    }
    assert_eq!(forwarder.flights.len(), MAX_IDLE + MAX_BEGUN);
    assert_eq!(answers(&mut forwarder).len(), MAX_IDLE - (MAX_OF_CLIENT - MAX_BEGUN));
    // Many clients leave room to those that have none.
    for client in 4..200 {
        for id in 0..40 {
            ask(&mut forwarder, now, &format!("{client}-{id}.example.com"), id, client);
        }
        assert!(sent(&mut forwarder).is_some());
        assert!(answers(&mut forwarder).len() >= 40 - MAX_BEGUN);
        if forwarder.flights.len() >= MAX_SHARED + 100 {
            break;
        }
    }
    assert_eq!(forwarder.flights.len(), MAX_SHARED + 100);
    // Everything ends in time.
    for seconds in 0..10 {
        forwarder.tick(now + Duration::from_secs(seconds), Vec::new);
    }
    assert!(forwarder.waiting.is_empty() && forwarder.begun.is_empty());
}

/// What a server does that sends a query back to us.
fn send_back(forwarder: &mut Forwarder, now: Instant, query: &[u8]) {
    let Read::Query(asked) = message::read(query) else { panic!() };
    let client = Client::Udp(0, "192.0.2.1:4000".parse().unwrap());
    let waiter = Waiter { client, asked: asked.clone(), limit: 1232, aliases: None };
    forwarder.ask(now, asked, waiter);
}

#[test]
fn a_server_that_forwards_to_us_is_asked_no_more_for_a_while() {
    let mut forwarder = forwarder(&[A]);
    let now = Instant::from_secs(100);
    forwarder.tick(now, Vec::new);
    let (_, _, query, _) = sent(&mut forwarder).unwrap();
    send_back(&mut forwarder, now, &query);
    assert_eq!(rcode(&answers(&mut forwarder)[0]), Rcode::REFUSED);
    ask(&mut forwarder, now, "www.example.com", 1, 2);
    assert_eq!(rcode(&answers(&mut forwarder)[0]), Rcode::SERVFAIL);
    assert_eq!(forwarder.counters.loops.get(), 1);
    // Not before its time; then it is probed, and asked.
    forwarder.tick(now + loops::LOOPED - Duration::from_secs(1), Vec::new);
    assert!(sent(&mut forwarder).is_none());
    let later = now + loops::LOOPED + REFRESH;
    forwarder.tick(later, Vec::new);
    assert!(sent(&mut forwarder).is_some());
    ask(&mut forwarder, later, "www.example.com", 1, 2);
    assert!(sent(&mut forwarder).is_some());
}

#[test]
fn a_loop_is_of_one_zone() {
    let stub =
        |zone: &str, server: &str| Stub::new(Name::parse(zone).unwrap(), [server.parse().unwrap()]);
    let long = [["a"; 60].join("."), ["b"; 60].join(".")].join(".");
    let mut upstreams = Upstreams::default();
    for stub in [stub(".", A), stub("Corp.example", B), stub("lab.example", B), stub(&long, B)] {
        upstreams.set(stub);
    }
    let mut forwarder = Forwarder::new(upstreams, Arc::default());
    let now = Instant::from_secs(100);
    forwarder.tick(now, Vec::new);
    let probes: Vec<_> = std::iter::from_fn(|| sent(&mut forwarder)).collect();
    // No name fits below the long one.
    assert_eq!(probes.len(), 3);
    let is_in = |query: &[u8], zone: &[u8]| query.windows(zone.len()).any(|it| it == zone);
    let (_, to, query, _) =
        probes.iter().find(|probe| is_in(&probe.2, b"\x04corp\x07example\0")).unwrap();
    assert_eq!(*to, B.parse().unwrap());
    send_back(&mut forwarder, now, query);
    assert_eq!(rcode(&answers(&mut forwarder)[0]), Rcode::REFUSED);
    ask(&mut forwarder, now, "www.corp.example", 1, 2);
    assert_eq!(rcode(&answers(&mut forwarder)[0]), Rcode::SERVFAIL);
    ask(&mut forwarder, now, "www.lab.example", 2, 2);
    assert_eq!(sent(&mut forwarder).unwrap().1, B.parse().unwrap());
    let found = ("corp.example.".to_owned(), B.parse().unwrap());
    assert_eq!(forwarder.problems.get().loops, [found].into());
}

/// A forwarder with so many servers, each of a zone of its own.
fn with_servers(count: u16) -> Forwarder {
    let mut upstreams = Upstreams::default();
    for at in 0..count {
        let [high, low] = at.to_be_bytes();
        let server = SocketAddr::from(([192, 0, high, low], 53));
        upstreams.set(Stub::new(Name::parse(&format!("z{at}.example")).unwrap(), [server]));
    }
    Forwarder::new(upstreams, Arc::default())
}

#[test]
fn all_servers_are_probed_a_limited_number_at_a_time() {
    let count = 3 * loops::MAX_PROBES + 8;
    let mut forwarder = with_servers(count as u16);
    let turn = |forwarder: &mut Forwarder, round: u64| -> Vec<_> {
        forwarder.tick(Instant::from_secs(100 + round * REFRESH.as_secs()), Vec::new);
        std::iter::from_fn(|| sent(forwarder)).map(|(flight, to, ..)| (flight, to)).collect()
    };
    let mut probed = Vec::new();
    for round in 0..3 {
        let probes = turn(&mut forwarder, round);
        assert_eq!(probes.len(), loops::MAX_PROBES);
        probed.extend(probes.iter().map(|(_, to)| *to));
    }
    // The last ones, and the first ones again.
    probed.extend(turn(&mut forwarder, 3).iter().map(|(_, to)| *to));
    assert_eq!(probed.len(), 4 * loops::MAX_PROBES);
    let (round, again) = probed.split_at(count);
    assert_eq!(round.iter().collect::<std::collections::HashSet<_>>().len(), count);
    assert_eq!(again, &round[..again.len()]);
}

#[test]
fn probes_leave_all_room_to_clients() {
    let mut forwarder = with_servers(200);
    let now = Instant::from_secs(100);
    forwarder.tick(now, Vec::new);
    assert_eq!(answers(&mut forwarder).len(), 0);
    assert_eq!(forwarder.flights.len(), loops::MAX_PROBES);
    for id in 0..MAX_IDLE as u16 {
        ask(&mut forwarder, now, &format!("{id}.z7.example"), id, 2);
    }
    assert_eq!(std::iter::from_fn(|| sent(&mut forwarder)).count(), MAX_IDLE);
    assert_eq!(forwarder.counters.refused.get(), 0);
}

#[test]
fn a_server_that_forwards_to_us_is_asked_when_it_has_been_probed_again() {
    let mut forwarder = with_servers(2 * loops::MAX_PROBES as u16);
    let now = Instant::from_secs(100);
    forwarder.tick(now, Vec::new);
    let (_, server, query, _) = sent(&mut forwarder).unwrap();
    send_back(&mut forwarder, now, &query);
    answers(&mut forwarder);
    // The turn of the others.
    let later = now + loops::LOOPED;
    forwarder.tick(later, Vec::new);
    assert!(std::iter::from_fn(|| sent(&mut forwarder)).all(|(_, to, ..)| to != server));
    let SocketAddr::V4(address) = server else { panic!() };
    let [_, _, high, low] = address.ip().octets();
    let name = format!("www.z{}.example", u16::from_be_bytes([high, low]));
    ask(&mut forwarder, later, &name, 1, 2);
    assert_eq!(rcode(&answers(&mut forwarder)[0]), Rcode::SERVFAIL);
    let later = later + REFRESH;
    forwarder.tick(later, Vec::new);
    let probes = std::iter::from_fn(|| sent(&mut forwarder));
    assert_eq!(probes.filter(|(_, to, ..)| *to == server).count(), 1);
    ask(&mut forwarder, later, &name, 2, 2);
    assert_eq!(sent(&mut forwarder).unwrap().1, server);
}

#[test]
fn a_loop_is_known_until_the_server_replies_without_asking() {
    let mut forwarder = forwarder(&[A]);
    let found = |forwarder: &Forwarder| forwarder.problems.get().loops.clone();
    let mut now = Instant::from_secs(100);
    for _ in 0..3 {
        forwarder.tick(now, Vec::new);
        let (flight, _, query, _) = sent(&mut forwarder).unwrap();
        send_back(&mut forwarder, now, &query);
        forwarder.reply(now, flight, &reply(&query, 0, 5));
        assert_eq!(found(&forwarder), [(".".to_owned(), A.parse().unwrap())].into());
        now = now + loops::LOOPED + REFRESH;
    }
    forwarder.tick(now, Vec::new);
    let (flight, _, query, _) = sent(&mut forwarder).unwrap();
    assert_eq!(found(&forwarder).len(), 1, "not known yet");
    forwarder.reply(now, flight, &reply(&query, 0, 3));
    assert!(found(&forwarder).is_empty());
}

#[test]
fn it_is_known_whether_there_is_any_server() {
    let has_none = |forwarder: &Forwarder| forwarder.problems.get().has_no_server;
    let now = Instant::from_secs(100);
    let mut without = forwarder(&[]);
    without.tick(now, Vec::new);
    assert!(has_none(&without));
    // Those that are this resolver are none.
    let mut forwarder = forwarder(&[A, B]);
    forwarder.tick(now, || vec![A.parse().unwrap()]);
    assert!(!has_none(&forwarder));
    forwarder.tick(now + REFRESH, || vec![A.parse().unwrap(), B.parse().unwrap()]);
    assert!(has_none(&forwarder));
}

#[test]
fn servers_of_one_domain_are_none_for_other_names() {
    let stub =
        |zone: &str, server: &str| Stub::new(Name::parse(zone).unwrap(), [server.parse().unwrap()]);
    let mut upstreams = Upstreams::default();
    upstreams.set(stub(".", A));
    upstreams.set(stub("corp.example", B));
    let mut forwarder = Forwarder::new(upstreams, Arc::default());
    let now = Instant::from_secs(100);
    for (own, has_none) in [(A, true), (B, false)] {
        let now = if has_none { now } else { now + REFRESH };
        forwarder.tick(now, || vec![own.parse().unwrap()]);
        assert_eq!(forwarder.problems.get().has_no_server, has_none, "{own}");
        while forwarder.take().is_some() {}
        // As it is answered.
        ask(&mut forwarder, now, "www.example.com", 1, 2);
        assert_eq!(answers(&mut forwarder).len(), usize::from(has_none));
    }
}

#[test]
fn a_client_has_a_share_of_those_that_wait_for_one_reply() {
    let mut forwarder = forwarder(&[A]);
    let now = Instant::from_secs(100);
    for client in 2..4 {
        for id in 0..MAX_OF_CLIENT as u16 {
            ask(&mut forwarder, now, "slow.example.com", id, client);
        }
    }
    assert_eq!(forwarder.counters.refused.get(), 2 * (MAX_OF_CLIENT - MAX_SAME) as u64);
    let (flight, _, query, _) = sent(&mut forwarder).unwrap();
    answers(&mut forwarder);
    // Others are not refused.
    for client in 4..100 {
        ask(&mut forwarder, now, "slow.example.com", 1, client);
    }
    assert!(answers(&mut forwarder).is_empty());
    forwarder.reply(now, flight, &reply(&query, 300, 0));
    let got = answers(&mut forwarder);
    assert_eq!(got.len(), 2 * MAX_SAME + 96);
    assert!(got.iter().all(|it| rcode(it) == Rcode::NOERROR));
    assert!(forwarder.waiting.is_empty());
}

#[test]
fn a_query_that_the_node_cannot_send_is_sent_later() {
    let mut forwarder = forwarder(&[A, B]);
    let mut now = Instant::from_secs(100);
    // The probes, whose time is not up meanwhile.
    forwarder.tick(now, Vec::new);
    while forwarder.take().is_some() {}
    ask(&mut forwarder, now, "www.example.com", 1, 2);
    // Far more often than servers are tried.
    for _ in 0..3 * MAX_TRIES {
        let (flight, first, ..) = sent(&mut forwarder).unwrap();
        forwarder.not_sent(now, flight);
        let (_, second, ..) = sent(&mut forwarder).unwrap();
        assert_ne!(first, second);
        forwarder.not_sent(now, flight);
        assert!(sent(&mut forwarder).is_none());
        assert!(forwarder.due() <= now + PAUSE);
        now = now + PAUSE;
        forwarder.tick(now, Vec::new);
    }
    assert!(forwarder.resting.is_empty());
    assert_eq!((forwarder.counters.failed.get(), forwarder.counters.errors.get()), (0, 0));
    // It has all its tries left.
    for _ in 0..MAX_TRIES {
        assert_eq!(forwarder.counters.errors.get(), 0);
        let (flight, ..) = sent(&mut forwarder).unwrap();
        forwarder.failed(now, flight);
    }
    assert_eq!(rcode(&answers(&mut forwarder)[0]), Rcode::SERVFAIL);
    // One that can never be sent is given up.
    let end = now + PATIENCE * MAX_TRIES as u32;
    ask(&mut forwarder, now, "never.example.com", 2, 2);
    while let Some((flight, ..)) = sent(&mut forwarder) {
        forwarder.not_sent(now, flight);
        if forwarder.counters.errors.get() == 2 {
            break;
        }
        if forwarder.actions.is_empty() {
            now = now + PAUSE;
            forwarder.tick(now, Vec::new);
        }
        assert!(now < end);
    }
    assert_eq!(rcode(answers(&mut forwarder).last().unwrap()), Rcode::SERVFAIL);
    assert!(forwarder.by_key.is_empty() && forwarder.waiting.is_empty());
}
