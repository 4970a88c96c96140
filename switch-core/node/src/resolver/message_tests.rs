//! Messages of clients and of other servers, good and bad.

use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name, Ttl};
use domain::rdata::{A, Cname, Soa};
use podswitch_dns::{Name as OurName, query};
use proptest::prelude::*;

use super::*;

fn asked(name: &str, qtype: u16, size: Option<u16>) -> Asked {
    match read(&query(7, &OurName::parse(name).unwrap(), qtype, size)) {
        Read::Query(asked) => asked,
        other => panic!("{other:?}"),
    }
}

fn name(text: &str) -> OwnName {
    Name::vec_from_str(text).unwrap()
}

/// A reply with so many addresses, and an SOA.
fn reply(asked: &Asked, rcode: Rcode, addresses: u8, ttl: u32) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec().question();
    builder.header_mut().set_qr(true);
    builder.header_mut().set_rcode(rcode);
    builder.push((&asked.name, asked.qtype, asked.class)).unwrap();
    let mut builder = builder.answer();
    for last in 0..addresses {
        builder.push((&asked.name, ttl, A::from_octets(198, 51, 100, last))).unwrap();
    }
    let mut builder = builder.authority();
    let (server, who) = (name("ns.example.com"), name("admin.example.com"));
    let time = Ttl::from_secs(60);
    let soa = Soa::new(server, who, 1.into(), time, time, time, Ttl::from_secs(3));
    builder.push((&name("example.com"), Class::IN, Ttl::from_secs(600), soa)).unwrap();
    builder.finish()
}

fn answers(message: &[u8]) -> usize {
    let message = Message::from_octets(message).unwrap();
    message.answer().unwrap().map(Result::unwrap).count()
}

#[test]
fn what_cannot_be_answered_is_refused_by_the_right_code() {
    let good = query(7, &OurName::parse("www.example.com").unwrap(), 1, None);
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    for (bytes, rcode) in [
        (changed(2, 0x21), Rcode::NOTIMP),
        (changed(5, 2), Rcode::FORMERR),
        (changed(5, 0), Rcode::FORMERR),
        (changed(12, 70), Rcode::FORMERR),
        (changed(good.len() - 3, 252), Rcode::REFUSED),
        (changed(good.len() - 1, 3), Rcode::REFUSED),
    ] {
        let Read::Refused(answer) = read(&bytes) else { panic!("{bytes:?}") };
        let message = Message::from_octets(&answer[..]).unwrap();
        assert_eq!((message.header().id(), message.header().rcode()), (7, rcode), "{bytes:?}");
        assert!(message.header().qr());
    }
    assert!(matches!(read(&good[..11]), Read::Ignored));
    assert!(matches!(read(&changed(2, 0x81)), Read::Ignored));
}

#[test]
fn an_answer_is_bounded_by_what_the_client_receives() {
    for (size, limit) in [(None, 512), (Some(900), 900), (Some(65_000), 1232), (Some(0), 512)] {
        let asked = asked("www.example.com", 1, size);
        assert_eq!(asked.udp_limit(), limit);
        let reply = reply(&asked, Rcode::NOERROR, 200, 300);
        let cut = asked.answer(&reply, 0, limit, None);
        assert!(cut.len() <= limit && cut.len() > limit - 40, "{} of {limit}", cut.len());
        let message = Message::from_octets(&cut[..]).unwrap();
        assert!(message.header().tc() && message.header().ra());
        assert_eq!(message.opt().is_some(), size.is_some());
        let whole = asked.answer(&reply, 0, 65_535, None);
        assert_eq!(answers(&whole), 200);
        assert!(!Message::from_octets(&whole[..]).unwrap().header().tc());
    }
}

#[test]
fn authority_is_there_whole_or_not_at_all() {
    let asked = asked("www.example.com", 1, None);
    let reply = reply(&asked, Rcode::NOERROR, 20, 300);
    let whole = asked.answer(&reply, 0, 65_535, None);
    let mut without = 0;
    // The builder leaves one byte.
    for limit in 100..=whole.len() + 1 {
        let got = asked.answer(&reply, 0, limit, None);
        let message = Message::from_octets(&got[..]).unwrap();
        let counts = message.header_counts();
        assert!(got.len() <= limit, "{limit}");
        assert_eq!(message.header().tc(), counts.ancount() < 20, "{limit}");
        assert_eq!(counts.nscount(), u16::from(limit > whole.len()), "{limit}");
        assert_eq!(message.authority().unwrap().count(), usize::from(counts.nscount()));
        without += u16::from(!message.header().tc() && counts.nscount() == 0);
    }
    assert!(without > 10, "{without}");
}

#[test]
fn replies_are_kept_as_long_as_they_say_and_not_longer() {
    let asked = asked("www.example.com", 1, Some(1232));
    for (rcode, addresses, ttl, kept) in [
        (Rcode::NOERROR, 1, 300, 30),
        (Rcode::NOERROR, 2, 7, 7),
        (Rcode::NOERROR, 1, 0, 0),
        // The SOA's minimum.
        (Rcode::NOERROR, 0, 0, 3),
        (Rcode::NXDOMAIN, 0, 0, 3),
        (Rcode::SERVFAIL, 0, 0, 0),
        (Rcode::REFUSED, 0, 0, 0),
    ] {
        let reply = reply(&asked, rcode, addresses, ttl);
        assert_eq!(time_to_live(&reply), kept, "{rcode} {addresses} {ttl}");
    }
    assert_eq!(time_to_live(&[0; 12]), 0, "negative without an SOA");
}

#[test]
fn an_alias_of_the_zone_goes_before_what_it_leads_to() {
    let asked = asked("alias.shop.svc.cluster.local", 1, None);
    let mut builder = MessageBuilder::new_vec().question();
    builder.push((&asked.name, Rtype::A)).unwrap();
    let mut builder = builder.answer();
    let target = name("www.example.com");
    builder.push((&asked.name, 5, Cname::new(target.clone()))).unwrap();
    let ours = builder.finish();
    assert_eq!(last_alias(&ours), Some(target.clone()));
    let reply = reply(&asked.about(target), Rcode::NOERROR, 1, 300);
    let answer = asked.answer(&reply, 10, 512, Some(&ours));
    let message = Message::from_octets(&answer[..]).unwrap();
    let records: Vec<_> = message.answer().unwrap().map(Result::unwrap).collect();
    let listed: Vec<_> = records.iter().map(|it| (it.rtype(), it.ttl().as_secs())).collect();
    assert_eq!(listed, [(Rtype::CNAME, 5), (Rtype::A, 20)]);
    assert_eq!(message.sole_question().unwrap().qname(), &asked.name);
}

proptest! {
    #[test]
    fn no_bytes_are_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..200), limit in 0..600_usize) {
        let _ = read(&bytes);
        let _ = time_to_live(&bytes);
        let _ = last_alias(&bytes);
        let asked = asked("www.example.com", 1, None);
        let _ = asked.is_answered_by(7, &bytes);
        let answer = asked.answer(&bytes, 1, limit, Some(&bytes));
        prop_assert!(answer.len() <= limit.max(512));
    }

    #[test]
    fn nor_a_damaged_reply(at in 0..400_usize, byte: u8) {
        let asked = asked("www.example.com", 1, None);
        let mut bytes = reply(&asked, Rcode::NOERROR, 8, 300);
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = time_to_live(&bytes);
        let answer = asked.answer(&bytes, 1, 512, None);
        prop_assert!(answer.len() <= 512);
    }
}
