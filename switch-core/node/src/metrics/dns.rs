//! Series of cluster DNS, and on demand the same under CoreDNS's names, for dashboards that were made for it.

use super::meters::Meters;
use super::text::Text;
use crate::stats::DnsStats;

/// Writes the series, if names are answered for.
pub(super) fn write(text: &mut Text, stats: &DnsStats, meters: &Meters) {
    if stats.zone.is_empty() {
        return;
    }
    let families = || {
        let types = |(family, types)| {
            let it: &std::collections::BTreeMap<String, u64> = types;
            it.iter().map(move |(name, count)| (family, name.as_str(), *count))
        };
        stats.queries.iter().flat_map(types)
    };
    let help = "Name queries that the engine answered, by family and type.";
    text.family("podswitch_dns_queries_total", "counter", help);
    for (family, name, count) in families() {
        text.sample(&[("family", family), ("type", name)], count);
    }
    let help = "Answers of the engine to name queries, by response code.";
    text.family("podswitch_dns_answers_total", "counter", help);
    for (rcode, count) in &stats.rcodes {
        text.sample(&[("rcode", rcode)], count);
    }
    let resolver = meters.resolver();
    let [by_udp, by_tcp] = &resolver.queries;
    for (name, help, value) in [
        ("podswitch_dns_truncated_total", "Answers with the TC flag.", stats.truncated),
        ("podswitch_dns_passed_total", "Datagrams to kube-dns for its backend.", stats.passed),
        ("podswitch_resolver_queries_udp_total", "Queries to the resolver by UDP.", by_udp.get()),
        ("podswitch_resolver_queries_tcp_total", "Queries to the resolver by TCP.", by_tcp.get()),
        ("podswitch_resolver_zone_total", "Those answered from the zone.", resolver.zone.get()),
        (
            "podswitch_resolver_cache_hits_total",
            "Those with a kept reply.",
            resolver.cache_hits.get(),
        ),
        ("podswitch_resolver_cache_misses_total", "Those without.", resolver.cache_misses.get()),
        (
            "podswitch_resolver_forwarded_total",
            "Queries to other servers.",
            resolver.forwarded.get(),
        ),
        ("podswitch_resolver_truncated_total", "Those sent again by TCP.", resolver.by_tcp.get()),
        ("podswitch_resolver_failed_total", "Those without a reply.", resolver.failed.get()),
        ("podswitch_resolver_refused_total", "Queries refused at a limit.", resolver.refused.get()),
        (
            "podswitch_resolver_errors_total",
            "Queries answered with an error.",
            resolver.errors.get(),
        ),
        (
            "podswitch_resolver_ignored_total",
            "Messages that are no query, without an answer.",
            resolver.ignored.get(),
        ),
        (
            "podswitch_resolver_mismatched_total",
            "Messages of other servers that answer no query.",
            resolver.mismatched.get(),
        ),
        ("podswitch_resolver_unsent_total", "Answers that were not sent.", resolver.unsent.get()),
        ("podswitch_resolver_loops_total", "Servers that forward back.", resolver.loops.get()),
        (
            "podswitch_resolver_open_errors_total",
            "Sockets to other servers that the node could not open.",
            resolver.open_errors.get(),
        ),
        (
            "podswitch_resolver_accept_errors_total",
            "Connections that could not be accepted.",
            resolver.accept_errors.get(),
        ),
        (
            "podswitch_resolver_connections_refused_total",
            "Connections refused at a limit.",
            resolver.connections_refused.get(),
        ),
        (
            "podswitch_resolver_connections_ended_total",
            "Connections ended for silence, unread answers or lack of room.",
            resolver.connections_ended.get(),
        ),
    ] {
        text.one(name, "counter", help, value);
    }
    let help = "Replies of other servers that are kept.";
    text.one("podswitch_resolver_cached", "gauge", help, resolver.cached.get());
    if !meters.has_coredns_names() {
        return;
    }
    let common = [("server", "dns://:53"), ("zone", stats.zone.as_str()), ("view", "")];
    let help = "Counter of DNS requests made per zone, protocol and family.";
    text.family("coredns_dns_requests_total", "counter", help);
    for (family, name, count) in families() {
        let family = if *family == "ipv4" { "1" } else { "2" };
        let [server, zone, view] = common;
        let labels = [server, zone, view, ("proto", "udp"), ("family", family), ("type", name)];
        text.sample(&labels, count);
    }
    let help = "Counter of response status codes.";
    text.family("coredns_dns_responses_total", "counter", help);
    for (rcode, count) in &stats.rcodes {
        let [server, zone, view] = common;
        text.sample(&[server, zone, view, ("rcode", rcode), ("plugin", "kubernetes")], count);
    }
    let [server, ..] = common;
    let others = [server, ("zones", "."), ("view", "")];
    let help = "The count of cache hits.";
    text.family("coredns_cache_hits_total", "counter", help);
    let [_, zones, view] = others;
    text.sample(&[server, ("type", "success"), zones, view], resolver.cache_hits.get());
    let help = "The count of cache misses.";
    text.family("coredns_cache_misses_total", "counter", help);
    text.sample(&others, resolver.cache_misses.get());
    let help = "The number of elements in the cache.";
    text.family("coredns_cache_entries", "gauge", help);
    text.sample(&[server, ("type", "success"), zones, view], resolver.cached.get());
    let help =
        "Counter of the number of queries rejected because the concurrent queries were at maximum.";
    text.one(
        "coredns_forward_max_concurrent_rejects_total",
        "counter",
        help,
        resolver.refused.get(),
    );
}
