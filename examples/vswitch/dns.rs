//! `dns`: what a name would be answered, and why.
//!
//! The answer is the real one: the zone compiled from the manifests, and the datagram that a client would get.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::ValueEnum;
use podswitch_dns::{
    Explained, MAX_SIZE, MIN_SIZE, Name, PodNames, Record, Settings, Transport, Zone, explain,
    record_type, type_name, type_number,
};
use podswitch_kubernetes::{Manifests, Options};
use serde::Serialize;

use crate::cluster::ClusterArgs;
use crate::failure::Failure;
use crate::{Done, print, state};

/// Say what a name would be answered by the cluster's DNS, and why: by which rule of the Kubernetes DNS specification,
/// and which object.
///
/// NAME is absolute: api.shop.svc.cluster.local. An address means the name of its PTR records. Names of other zones
/// are a forwarder's; what that would answer is not known here.
///
/// Exit status: 0 there are records, 1 there are none or the name is another zone's, 2 bad usage or manifests that
/// cannot be read.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The name, or an address.
    #[arg(value_name = "NAME")]
    name: String,
    /// The type of records, such as A, AAAA, SRV, PTR, CNAME, TXT. Default: A; for an address PTR.
    #[arg(value_name = "TYPE", value_parser = qtype)]
    qtype: Option<u16>,
    /// A manifest, or a folder of them: YAML or JSON, as kubectl prints it.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// The node whose view it is; every node answers alike. It must have a Node object.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// The cluster's domain.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", value_parser = name)]
    cluster_domain: Name,
    /// How names such as 10-1-0-7.shop.pod.cluster.local are answered: not at all, whether there is such a pod or not,
    /// or only if there is.
    #[arg(long, value_enum, value_name = "disabled|insecure|verified", default_value = "verified")]
    pods: Pods,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pods {
    Disabled,
    Insecure,
    Verified,
}

fn name(text: &str) -> Result<Name, String> {
    Name::parse(text).map_err(|error| error.to_string())
}

fn qtype(text: &str) -> Result<u16, String> {
    type_number(text).ok_or_else(|| format!("{text:?} is no type of records"))
}

/// The answer to one question.
#[derive(Serialize)]
struct Report {
    name: String,
    #[serde(rename = "type")]
    qtype: String,
    /// `NOT-OURS`: another zone's.
    rcode: &'static str,
    steps: Vec<Step>,
    answer: Vec<Line>,
    authority: Vec<Line>,
    additional: Vec<Line>,
    /// The last alias leads to another zone, whose records a forwarder adds.
    partial: bool,
    /// Bytes of the whole answer.
    bytes: usize,
    /// Whether it is cut for clients that receive 512 bytes, and for those that receive more.
    truncated: Truncated,
}

#[derive(Serialize)]
struct Step {
    name: String,
    /// `other-zone`: none of ours.
    rule: &'static str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<String>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    ttl: u32,
    #[serde(rename = "type")]
    kind: String,
    data: String,
}

#[derive(Serialize)]
struct Truncated {
    plain: bool,
    edns: bool,
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    let (name, default) = match args.name.parse::<IpAddr>() {
        Ok(address) => (Name::reverse(address), record_type::PTR),
        Err(_) => (name(&args.name).map_err(Failure::Input)?, record_type::A),
    };
    let qtype = args.qtype.unwrap_or(default);
    let manifests = Manifests::load(&args.manifests)?;
    let options = args.cluster.options(false);
    let compiled = state::compile(&manifests, args.node.as_deref(), &options);
    if let Some(record) = compiled.records.iter().find(|record| record.is_missing_node()) {
        return Err(Failure::Input(record.reason.clone()));
    }
    state::say(&compiled.records);
    let zone = zone(args, &manifests, &options.kubernetes())?;
    let it = explain(&zone, &name, qtype);
    let report = Report::new(&zone, &name, qtype, it);
    let has_records = !report.answer.is_empty();
    if json {
        print::json(&report)
    } else {
        print::line(&report)
    }
    if has_records { Ok(()) } else { Err(Failure::Checked) }
}

/// The zone of the manifests.
fn zone(args: &Args, manifests: &Manifests, options: &Options) -> Result<Zone, Failure> {
    let pods = match args.pods {
        Pods::Disabled => PodNames::Disabled,
        Pods::Insecure => PodNames::Insecure,
        Pods::Verified => PodNames::Verified,
    };
    let domain = args.cluster_domain.clone();
    let mut zone = Zone::new(Settings { domain, pods, ..Settings::default() })
        .map_err(|error| Failure::Setup(error.to_string()))?;
    for (object, facts) in manifests.name_facts(options) {
        if let Err(error) = zone.upsert(facts) {
            print::warning(format_args!("{object}: has no name: {error}"));
        }
    }
    zone.set_synced(true);
    Ok(zone)
}

impl Report {
    fn new(zone: &Zone, name: &Name, qtype: u16, it: Explained) -> Self {
        let is_cut = |size: Option<u16>| {
            let query = podswitch_dns::query(0, name, qtype, size);
            let mut out = [0; MAX_SIZE];
            let outcome = podswitch_dns::answer(zone, &query, Transport::Udp, 0, &mut out);
            matches!(outcome, podswitch_dns::Outcome::Answered(it) if it.is_truncated)
        };
        let truncated = Truncated { plain: is_cut(None), edns: is_cut(Some(MAX_SIZE as u16)) };
        let steps = it.steps.into_iter().map(|step| Step {
            name: step.name,
            rule: step.rule.map_or("other-zone", |rule| rule.name()),
            reason: step.rule.map_or("another zone's: for a forwarder", |rule| rule.text()),
            object: step.object,
        });
        let mut sections: [Vec<Line>; 3] = Default::default();
        for Record { section, name, ttl, kind, data } in it.records {
            let at = ["answer", "authority", "additional"].iter().position(|it| *it == section);
            sections[at.unwrap_or(2)].push(Line { name, ttl, kind, data });
        }
        let [answer, authority, additional] = sections;
        Self {
            name: name.to_string(),
            qtype: type_name(qtype),
            rcode: it.rcode.map_or("NOT-OURS", |rcode| rcode.name()),
            steps: steps.collect(),
            answer,
            authority,
            additional,
            partial: it.is_partial,
            bytes: it.len,
            truncated,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.name, self.qtype, self.rcode)?;
        if self.bytes > 0 {
            write!(f, ", {} bytes", self.bytes)?;
        }
        match self.truncated {
            Truncated { edns: true, .. } => write!(f, ", by UDP truncated")?,
            Truncated { plain: true, .. } => {
                write!(f, ", truncated for clients without EDNS ({MIN_SIZE} bytes)")?;
            }
            _ => {}
        }
        for step in &self.steps {
            let object =
                step.object.as_deref().map_or(String::new(), |object| format!("{object}: "));
            write!(f, "\n  {}  {object}{}", step.name, step.reason)?;
        }
        if self.partial {
            write!(f, "\n  the records of the last name are added by a forwarder")?;
        }
        for (title, lines) in [
            ("answer", &self.answer),
            ("authority", &self.authority),
            ("additional", &self.additional),
        ] {
            if !lines.is_empty() {
                write!(f, "\n{title}:")?;
            }
            for Line { name, ttl, kind, data } in lines {
                write!(f, "\n  {name} {ttl} IN {kind} {data}")?;
            }
        }
        Ok(())
    }
}
