//! What CoreDNS's tests `handler`, `kubernetes_apex` and `handler_case` ask, and what its users ask besides.

use podswitch_dns::Settings;

use crate::world::{answered, ask, authority, check, query, zone};

#[test]
fn services_with_cluster_ips() {
    check(
        &zone(Settings::default()),
        "
        web.prod.svc.cluster.local A => NOERROR
        web.prod.svc.cluster.local. 5 IN A 10.0.0.1

        idle.prod.svc.cluster.local A => NOERROR
        idle.prod.svc.cluster.local. 5 IN A 10.0.0.2

        web.prod.svc.cluster.local SRV => NOERROR
        web.prod.svc.cluster.local. 5 IN SRV 0 100 80 web.prod.svc.cluster.local.
        + web.prod.svc.cluster.local. 5 IN A 10.0.0.1

        six.prod.svc.cluster.local SRV => NOERROR
        six.prod.svc.cluster.local. 5 IN SRV 0 100 80 six.prod.svc.cluster.local.
        + six.prod.svc.cluster.local. 5 IN AAAA 1234:abcd::1

        _http._tcp.web.prod.svc.cluster.local SRV => NOERROR
        _http._tcp.web.prod.svc.cluster.local. 5 IN SRV 0 100 80 web.prod.svc.cluster.local.
        + web.prod.svc.cluster.local. 5 IN A 10.0.0.1

        _http._tcp.six.prod.svc.cluster.local SRV => NOERROR
        _http._tcp.six.prod.svc.cluster.local. 5 IN SRV 0 100 80 six.prod.svc.cluster.local.
        + six.prod.svc.cluster.local. 5 IN AAAA 1234:abcd::1

        web.prod.svc.cluster.local AAAA => NOERROR

        six.prod.svc.cluster.local AAAA => NOERROR
        six.prod.svc.cluster.local. 5 IN AAAA 1234:abcd::1

        six.prod.svc.cluster.local A => NOERROR

        both.prod.svc.cluster.local A => NOERROR
        both.prod.svc.cluster.local. 5 IN A 10.0.0.3

        both.prod.svc.cluster.local AAAA => NOERROR
        both.prod.svc.cluster.local. 5 IN AAAA 10::3

        both.prod.svc.cluster.local SRV => NOERROR
        both.prod.svc.cluster.local. 5 IN SRV 0 50 80 both.prod.svc.cluster.local.
        + both.prod.svc.cluster.local. 5 IN A 10.0.0.3
        + both.prod.svc.cluster.local. 5 IN AAAA 10::3

        web.prod.svc.cluster.local SOA => NOERROR

        web.prod.svc.cluster.local TXT => NOERROR

        web.prod.svc.cluster.local MX => NOERROR

        web.prod.svc.cluster.local HINFO => NOERROR

        web.prod.svc.cluster.local CNAME => NOERROR

        web.prod.svc.cluster.local PTR => NOERROR

        web.prod.svc.cluster.local HTTPS => NOERROR

        web.prod.svc.cluster.local ANY => NOERROR
        web.prod.svc.cluster.local. 5 IN A 10.0.0.1

        plain.prod.svc.cluster.local SRV => NOERROR
        plain.prod.svc.cluster.local. 5 IN SRV 0 100 80 plain.prod.svc.cluster.local.
        + plain.prod.svc.cluster.local. 5 IN A 10.0.0.4

        kube-dns.kube-system.svc.cluster.local SRV => NOERROR
        kube-dns.kube-system.svc.cluster.local. 5 IN SRV 0 16 53 kube-dns.kube-system.svc.cluster.local.
        kube-dns.kube-system.svc.cluster.local. 5 IN SRV 0 16 9153 kube-dns.kube-system.svc.cluster.local.
        + kube-dns.kube-system.svc.cluster.local. 5 IN A 10.0.0.10
        + kube-dns.kube-system.svc.cluster.local. 5 IN AAAA fd00::10

        _dns._udp.kube-dns.kube-system.svc.cluster.local SRV => NOERROR
        _dns._udp.kube-dns.kube-system.svc.cluster.local. 5 IN SRV 0 50 53 kube-dns.kube-system.svc.cluster.local.
        + kube-dns.kube-system.svc.cluster.local. 5 IN A 10.0.0.10
        + kube-dns.kube-system.svc.cluster.local. 5 IN AAAA fd00::10
        ",
    );
}

#[test]
fn names_that_do_not_exist() {
    check(
        &zone(Settings::default()),
        "
        none.prod.svc.cluster.local A => NXDOMAIN

        none.prod.svc.cluster.local AAAA => NXDOMAIN

        none.prod.svc.cluster.local TXT => NXDOMAIN

        web.none.svc.cluster.local A => NXDOMAIN

        web.none.svc.cluster.local TXT => NXDOMAIN

        none.set.prod.svc.cluster.local A => NXDOMAIN

        none.web.prod.svc.cluster.local A => NXDOMAIN

        none.none.prod.svc.cluster.local A => NXDOMAIN

        _https._tcp.web.prod.svc.cluster.local SRV => NXDOMAIN

        _http._udp.web.prod.svc.cluster.local SRV => NXDOMAIN

        http.tcp.web.prod.svc.cluster.local SRV => NXDOMAIN

        _._tcp.plain.prod.svc.cluster.local SRV => NXDOMAIN

        a._http._tcp.web.prod.svc.cluster.local SRV => NXDOMAIN

        _udp.web.prod.svc.cluster.local SRV => NXDOMAIN

        foo.cluster.local NS => NXDOMAIN

        foo.svc.cluster.local NS => NXDOMAIN

        none.svc.cluster.local A => NXDOMAIN

        www.example.com.cluster.local A => NXDOMAIN

        www.example.com.svc.cluster.local A => NXDOMAIN

        www.example.com.prod.svc.cluster.local A => NXDOMAIN

        *.prod.svc.cluster.local A => NXDOMAIN

        any.prod.svc.cluster.local A => NXDOMAIN

        any.any.svc.cluster.local A => NXDOMAIN

        *.*.svc.cluster.local SRV => NXDOMAIN

        _any._any.web.prod.svc.cluster.local SRV => NXDOMAIN

        *.any.web.prod.svc.cluster.local SRV => NXDOMAIN

        any.set.prod.svc.cluster.local A => NXDOMAIN

        web.prod.cluster.local A => NXDOMAIN

        hostmaster.cluster.local A => NXDOMAIN

        example.test A => elsewhere

        cluster.local.test A => elsewhere

        xcluster.local A => elsewhere

        local A => elsewhere

        web.prod.svc.clusterset.local A => elsewhere

        . NS => elsewhere
        ",
    );
}

#[test]
fn names_above_others() {
    check(
        &zone(Settings::default()),
        "
        cluster.local SOA => NOERROR
        cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 5

        cluster.local NS => NOERROR
        cluster.local. 5 IN NS ns.dns.cluster.local.
        + ns.dns.cluster.local. 5 IN A 10.0.0.10
        + ns.dns.cluster.local. 5 IN AAAA fd00::10

        ns.dns.cluster.local A => NOERROR
        ns.dns.cluster.local. 5 IN A 10.0.0.10

        ns.dns.cluster.local AAAA => NOERROR
        ns.dns.cluster.local. 5 IN AAAA fd00::10

        ns.dns.cluster.local TXT => NOERROR

        dns.cluster.local A => NOERROR

        cluster.local A => NOERROR

        cluster.local AAAA => NOERROR

        cluster.local SRV => NOERROR

        cluster.local HINFO => NOERROR

        svc.cluster.local A => NOERROR

        svc.cluster.local NS => NOERROR

        pod.cluster.local A => NOERROR

        prod.svc.cluster.local A => NOERROR

        prod.svc.cluster.local NS => NOERROR

        empty.svc.cluster.local A => NOERROR

        other.svc.cluster.local A => NOERROR

        _tcp.web.prod.svc.cluster.local NS => NOERROR

        dns-version.cluster.local TXT => NOERROR
        dns-version.cluster.local. 28800 IN TXT \"1.1.0\"

        dns-version.cluster.local A => NOERROR

        a.dns-version.cluster.local TXT => NXDOMAIN
        ",
    );
}

#[test]
fn headless_services() {
    check(
        &zone(Settings::default()),
        "
        set.prod.svc.cluster.local A => NOERROR
        set.prod.svc.cluster.local. 5 IN A 172.0.0.2
        set.prod.svc.cluster.local. 5 IN A 172.0.0.3
        set.prod.svc.cluster.local. 5 IN A 172.0.0.4
        set.prod.svc.cluster.local. 5 IN A 172.0.0.5

        set.prod.svc.cluster.local AAAA => NOERROR
        set.prod.svc.cluster.local. 5 IN AAAA 5678:abcd::1
        set.prod.svc.cluster.local. 5 IN AAAA 5678:abcd::2

        portless.prod.svc.cluster.local A => NOERROR
        portless.prod.svc.cluster.local. 5 IN A 172.0.0.20

        portless.prod.svc.cluster.local AAAA => NOERROR

        portless.prod.svc.cluster.local SRV => NOERROR

        172-0-0-20.portless.prod.svc.cluster.local A => NOERROR
        172-0-0-20.portless.prod.svc.cluster.local. 5 IN A 172.0.0.20

        172-0-0-2.set.prod.svc.cluster.local A => NOERROR
        172-0-0-2.set.prod.svc.cluster.local. 5 IN A 172.0.0.2

        172-0-0-2.set.prod.svc.cluster.local AAAA => NOERROR

        172-0-0-2.set.prod.svc.cluster.local SRV => NOERROR
        172-0-0-2.set.prod.svc.cluster.local. 5 IN SRV 0 100 80 172-0-0-2.set.prod.svc.cluster.local.
        + 172-0-0-2.set.prod.svc.cluster.local. 5 IN A 172.0.0.2

        172-0-0-6.set.prod.svc.cluster.local A => NXDOMAIN

        172-0-0-4.set.prod.svc.cluster.local A => NXDOMAIN

        dup.set.prod.svc.cluster.local A => NOERROR
        dup.set.prod.svc.cluster.local. 5 IN A 172.0.0.4
        dup.set.prod.svc.cluster.local. 5 IN A 172.0.0.5

        5678-abcd--2.set.prod.svc.cluster.local AAAA => NOERROR
        5678-abcd--2.set.prod.svc.cluster.local. 5 IN AAAA 5678:abcd::2

        _http._tcp.set.prod.svc.cluster.local SRV => NOERROR
        _http._tcp.set.prod.svc.cluster.local. 5 IN SRV 0 16 80 172-0-0-2.set.prod.svc.cluster.local.
        _http._tcp.set.prod.svc.cluster.local. 5 IN SRV 0 16 80 172-0-0-3.set.prod.svc.cluster.local.
        _http._tcp.set.prod.svc.cluster.local. 5 IN SRV 0 16 80 5678-abcd--1.set.prod.svc.cluster.local.
        _http._tcp.set.prod.svc.cluster.local. 5 IN SRV 0 16 80 5678-abcd--2.set.prod.svc.cluster.local.
        _http._tcp.set.prod.svc.cluster.local. 5 IN SRV 0 16 80 dup.set.prod.svc.cluster.local.
        + 172-0-0-2.set.prod.svc.cluster.local. 5 IN A 172.0.0.2
        + 172-0-0-3.set.prod.svc.cluster.local. 5 IN A 172.0.0.3
        + 5678-abcd--1.set.prod.svc.cluster.local. 5 IN AAAA 5678:abcd::1
        + 5678-abcd--2.set.prod.svc.cluster.local. 5 IN AAAA 5678:abcd::2
        + dup.set.prod.svc.cluster.local. 5 IN A 172.0.0.4
        + dup.set.prod.svc.cluster.local. 5 IN A 172.0.0.5

        down.prod.svc.cluster.local A => NXDOMAIN

        down.prod.svc.cluster.local SRV => NXDOMAIN

        _http._tcp.down.prod.svc.cluster.local SRV => NXDOMAIN

        172-0-0-30.down.prod.svc.cluster.local A => NXDOMAIN

        early.prod.svc.cluster.local A => NOERROR
        early.prod.svc.cluster.local. 5 IN A 172.0.0.40

        first.early.prod.svc.cluster.local A => NOERROR
        first.early.prod.svc.cluster.local. 5 IN A 172.0.0.40

        back.web.prod.svc.cluster.local A => NOERROR
        back.web.prod.svc.cluster.local. 5 IN A 172.0.0.9

        172-0-0-1.web.prod.svc.cluster.local A => NOERROR
        172-0-0-1.web.prod.svc.cluster.local. 5 IN A 172.0.0.1
        ",
    );
}

#[test]
fn aliases() {
    check(
        &zone(Settings::default()),
        "
        ext.prod.svc.cluster.local CNAME => NOERROR
        ext.prod.svc.cluster.local. 5 IN CNAME ext.example.test.

        ext.prod.svc.cluster.local A => NOERROR
        ext.prod.svc.cluster.local. 5 IN CNAME ext.example.test.

        a.ext.prod.svc.cluster.local A => NXDOMAIN

        a.ext.prod.svc.cluster.local CNAME => NXDOMAIN

        a.b.ext.prod.svc.cluster.local CNAME => NXDOMAIN

        _http._tcp.ext.prod.svc.cluster.local SRV => NXDOMAIN

        to-web.prod.svc.cluster.local A => NOERROR
        to-web.prod.svc.cluster.local. 5 IN CNAME web.prod.svc.cluster.local.
        web.prod.svc.cluster.local. 5 IN A 10.0.0.1

        to-web.prod.svc.cluster.local AAAA => NOERROR
        to-web.prod.svc.cluster.local. 5 IN CNAME web.prod.svc.cluster.local.

        to-web.prod.svc.cluster.local SRV => NOERROR
        to-web.prod.svc.cluster.local. 5 IN CNAME web.prod.svc.cluster.local.
        web.prod.svc.cluster.local. 5 IN SRV 0 100 80 web.prod.svc.cluster.local.
        + web.prod.svc.cluster.local. 5 IN A 10.0.0.1

        to-set.prod.svc.cluster.local AAAA => NOERROR
        to-set.prod.svc.cluster.local. 5 IN CNAME set.prod.svc.cluster.local.
        set.prod.svc.cluster.local. 5 IN AAAA 5678:abcd::1
        set.prod.svc.cluster.local. 5 IN AAAA 5678:abcd::2

        to-none.prod.svc.cluster.local A => NXDOMAIN
        to-none.prod.svc.cluster.local. 5 IN CNAME none.prod.svc.cluster.local.

        twice.prod.svc.cluster.local A => NOERROR
        twice.prod.svc.cluster.local. 5 IN CNAME to-web.prod.svc.cluster.local.
        to-web.prod.svc.cluster.local. 5 IN CNAME web.prod.svc.cluster.local.
        web.prod.svc.cluster.local. 5 IN A 10.0.0.1

        self.prod.svc.cluster.local A => NOERROR
        self.prod.svc.cluster.local. 5 IN CNAME self.prod.svc.cluster.local.

        ping.prod.svc.cluster.local A => NOERROR
        ping.prod.svc.cluster.local. 5 IN CNAME pong.prod.svc.cluster.local.
        pong.prod.svc.cluster.local. 5 IN CNAME ping.prod.svc.cluster.local.

        address.prod.svc.cluster.local A => NXDOMAIN
        ",
    );
}

/// Negative answers by way of an alias have the SOA, too (RFC 2308 section 2).
#[test]
fn an_alias_to_nothing_has_the_authority() {
    let zone = zone(Settings::default());
    for (name, kind) in [("to-none", "A"), ("to-web", "AAAA")] {
        let reply = ask(&zone, &format!("{name}.prod.svc.cluster.local"), kind).expect("ours");
        assert_eq!(reply.authority, [authority("cluster.local.")], "{name}");
    }
}

/// The alias comes before what it leads to: resolvers read in order.
#[test]
fn aliases_come_first() {
    let zone = zone(Settings::default());
    let query = query("twice.prod.svc.cluster.local", domain::base::iana::Rtype::A);
    let reply = answered(&zone, &query, 0).expect("ours");
    let owners: Vec<_> = reply.answer.iter().filter_map(|line| line.split('.').next()).collect();
    assert_eq!(owners, ["twice", "to-web", "web"]);
}

/// Case is echoed (RFC 4343; resolvers with 0x20 depend on it), as CoreDNS's test `handler_case` has it.
#[test]
fn case_is_kept() {
    check(
        &zone(Settings::default()),
        "
        NONE.prod.svc.ClUsTeR.lOcAl A => NXDOMAIN

        WeB.PrOd.SvC.cLuStEr.LoCaL A => NOERROR
        WeB.PrOd.SvC.cLuStEr.LoCaL. 5 IN A 10.0.0.1

        _HtTp._TcP.wEb.PrOd.SvC.cLuStEr.LoCaL SRV => NOERROR
        _HtTp._TcP.wEb.PrOd.SvC.cLuStEr.LoCaL. 5 IN SRV 0 100 80 web.prod.svc.cLuStEr.LoCaL.
        + web.prod.svc.cLuStEr.LoCaL. 5 IN A 10.0.0.1

        Cluster.local SOA => NOERROR
        Cluster.local. 5 IN SOA ns.dns.Cluster.local. hostmaster.Cluster.local. 7 7200 1800 86400 5

        DNS-Version.Cluster.Local TXT => NOERROR
        DNS-Version.Cluster.Local. 28800 IN TXT \"1.1.0\"
        ",
    );
    let zone = zone(Settings::default());
    let reply = ask(&zone, "none.prod.svc.ClUsTeR.lOcAl", "A").expect("ours");
    assert_eq!(reply.authority, [authority("ClUsTeR.lOcAl.")]);
}

#[test]
fn settings() {
    let domain = podswitch_dns::Name::parse("k8s.example.org").expect("a name");
    let settings = Settings { domain, ttl: 30, ..Settings::default() };
    let zone = zone(settings);
    let reply = ask(&zone, "web.prod.svc.k8s.example.org", "A").expect("ours");
    assert_eq!(reply.answer, ["web.prod.svc.k8s.example.org. 30 IN A 10.0.0.1"]);
    let reply = ask(&zone, "x.svc.k8s.example.org", "A").expect("ours");
    assert!(reply.authority[0].starts_with("k8s.example.org. 30 IN SOA"), "{reply:?}");
    assert!(reply.authority[0].ends_with(" 30"), "{reply:?}");
    assert_eq!(ask(&zone, "web.prod.svc.cluster.local", "A"), None);
}

/// Names of the size of the standard's bounds are answered or refused, never cut.
#[test]
fn long_names() {
    let zone = zone(Settings::default());
    let label = "a".repeat(63);
    let room = 253 - ".cluster.local".len();
    let front = [&*label; 4].join(".");
    let name = format!("{}.cluster.local", &front[..room]);
    assert_eq!(ask(&zone, &name, "A").expect("ours").rcode, "NXDOMAIN");
}
