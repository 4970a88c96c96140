//! The reachability matrix: the policy verdict for every ordered pair, printed as it is computed.

use std::io::{self, BufWriter, ErrorKind, Write};
use std::net::IpAddr;

use podswitch_core::config::Config;
use podswitch_policy::table::{Party, PolicyTable};
use serde::Serialize;

use super::family::Family;
use super::reference::Wanted;
use crate::Done;
use crate::failure::Failure;

/// What to print.
pub(super) struct Question<'a> {
    pub(super) ports: &'a [Wanted],
    pub(super) families: &'a [Family],
    /// Addresses in addition to those of the objects.
    pub(super) with: &'a [IpAddr],
}

/// A row and a column: a party with an address of the family.
struct Entry {
    name: String,
    party: Party,
}

/// A line of the matrix for programs.
#[derive(Serialize)]
struct Cell<'a> {
    from: &'a str,
    to: &'a str,
    family: &'static str,
    port: &'a str,
    verdict: &'static str,
}

/// Prints the matrix: pods, nodes and addresses, each by name. A pair of an entry with itself is a
/// line like every other.
pub(super) fn print(
    config: &Config,
    table: &PolicyTable,
    question: &Question<'_>,
    json: bool,
) -> Done {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    for &family in question.families {
        let entries = entries(config, table, family, question.with);
        if let Err(error) = write(&mut out, table, &entries, family, question.ports, json) {
            return ended(&error);
        }
    }
    out.flush().or_else(|error| ended(&error))
}

/// A reader that closed the pipe has seen enough.
fn ended(error: &io::Error) -> Done {
    match error.kind() {
        ErrorKind::BrokenPipe => Ok(()),
        _ => Err(Failure::Setup(format!("the matrix cannot be written: {error}"))),
    }
}

fn entries(config: &Config, table: &PolicyTable, family: Family, with: &[IpAddr]) -> Vec<Entry> {
    let of = |addresses: &[IpAddr]| addresses.iter().copied().find(|a| Family::of(*a) == family);
    let pods = config.endpoints.iter().filter_map(|endpoint| {
        let pod = &endpoint.workload;
        Some((format!("{}/{}", pod.namespace, pod.name), of(&pod.addresses)?))
    });
    let nodes = config
        .nodes
        .iter()
        .filter_map(|node| Some((format!("node/{}", node.name), of(&node.addresses)?)));
    let by_name = |mut list: Vec<(String, IpAddr)>| {
        list.sort_unstable();
        list
    };
    let mut added: Vec<(String, IpAddr)> = Vec::new();
    for &address in with.iter().filter(|address| Family::of(**address) == family) {
        if !added.iter().any(|(_, other)| *other == address) {
            added.push((address.to_string(), address));
        }
    }
    let all = [by_name(pods.collect()), by_name(nodes.collect()), added];
    let entry = |(name, address)| Entry { name, party: table.party(address) };
    all.into_iter().flatten().map(entry).collect()
}

fn write(
    out: &mut impl Write,
    table: &PolicyTable,
    entries: &[Entry],
    family: Family,
    ports: &[Wanted],
    json: bool,
) -> io::Result<()> {
    let traffics: Vec<_> = ports
        .iter()
        .map(|wanted| (wanted.traffic(family == Family::Ipv6), wanted.to_string()))
        .collect();
    for from in entries {
        for to in entries {
            for (traffic, port) in &traffics {
                let allow = table.verdict(&from.party, &to.party, *traffic).allow();
                let verdict = if allow { "allow" } else { "deny" };
                let (from, to, family) = (&from.name, &to.name, family.name());
                if json {
                    let cell = Cell { from, to, family, port, verdict };
                    serde_json::to_writer(&mut *out, &cell)?;
                    out.write_all(b"\n")?;
                } else {
                    for part in [from, "\t", to, "\t", family, "\t", port, "\t", verdict, "\n"] {
                        out.write_all(part.as_bytes())?;
                    }
                }
            }
        }
    }
    Ok(())
}
