//! Why a connection is allowed or denied, as text and as data.
//!
//! Called for users and programs, never on the packet path. The verdict is that of the table. The
//! reasons are read from the policies as written, so that the two can be compared
//! ([`PolicyTable::weigh`]).

mod nearest;

use core::fmt;
use core::net::IpAddr;
use std::sync::Arc;

use crate::rule::{Direction, Protocol, Tier};
use crate::table::{Decision, Party, PolicyId, PolicyTable};
use crate::verdict::{Traffic, Why};

use nearest::Case;
pub use nearest::{Closeness, Match, Nearest};

/// The verdicts of both ends' policies, with reasons. The connection is allowed if both allow it
/// (N4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// Policies of the source.
    pub egress: Side,
    /// Policies of the destination.
    pub ingress: Side,
}

impl Explanation {
    /// Whether both ends allow the connection.
    pub fn allow(&self) -> bool {
        self.egress.allow && self.ingress.allow
    }

    /// The end that decided: `None` for an allowed connection, the first end that denies for a
    /// denied one, in order of evaluation.
    pub fn denied_by(&self) -> Option<&Side> {
        [&self.egress, &self.ingress].into_iter().find(|side| !side.allow)
    }
}

/// One end's part of an [`Explanation`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Side {
    /// Which end: egress is the source's.
    pub direction: Direction,
    /// Cookie of the pod whose policies were evaluated; `None` if this end is not a pod.
    pub pod: Option<Arc<str>>,
    /// Whether this end allows the connection.
    pub allow: bool,
    /// The reason.
    pub why: Why,
    /// Cookie of the policy that decided: whose rule allows or denies; on denial by isolation the
    /// first of `isolated_by`. `None` if no policy applied.
    pub policy: Option<Arc<str>>,
    /// Index of the rule in the policy's list for the direction, if a rule decided.
    pub rule: Option<u32>,
    /// The rule as text, if a rule decided.
    pub rule_text: Option<String>,
    /// The NetworkPolicies that isolate the pod in this direction, by cookie.
    pub isolated_by: Vec<Arc<str>>,
    /// On denial by isolation, the rule that came closest to allowing the connection.
    pub nearest: Option<Nearest>,
}

impl Side {
    /// `allow` or `deny`.
    pub const fn verdict(&self) -> &'static str {
        if self.allow { "allow" } else { "deny" }
    }
}

impl PolicyTable {
    /// Explains the verdict on a new connection between two addresses.
    pub fn explain(&self, from: IpAddr, to: IpAddr, traffic: Traffic) -> Explanation {
        let (source, destination) = (self.party(from), self.party(to));
        let verdict = self.verdict(&source, &destination, traffic);
        let side = |direction, decision, subject, peer| {
            Case { table: self, direction, subject, peer, traffic }.explain(decision)
        };
        Explanation {
            egress: side(Direction::Egress, &verdict.egress, &source, &destination),
            ingress: side(Direction::Ingress, &verdict.ingress, &destination, &source),
        }
    }

    /// How far a rule of a policy matches a connection, according to the policy as written and not
    /// as compiled. `None` if there is no such rule.
    pub fn weigh(
        &self,
        policy: PolicyId,
        direction: Direction,
        rule: u32,
        [from, to]: [IpAddr; 2],
        traffic: Traffic,
    ) -> Option<Match> {
        let (source, destination) = (self.party(from), self.party(to));
        let (subject, peer) = match direction {
            Direction::Egress => (&source, &destination),
            Direction::Ingress => (&destination, &source),
        };
        let case = Case { table: self, direction, subject, peer, traffic };
        case.weigh(self.policy(policy)?, rule as usize)
    }

    /// The reachability matrix of some addresses: for every ordered pair of different entries of
    /// one family, and each traffic, whether it is allowed.
    pub fn matrix<'a>(
        &'a self,
        addresses: &'a [IpAddr],
        traffics: &'a [Traffic],
    ) -> impl Iterator<Item = Cell> + 'a {
        let parties: Vec<Party> = addresses.iter().map(|address| self.party(*address)).collect();
        let pairs = (0..addresses.len()).flat_map(|a| (0..addresses.len()).map(move |b| (a, b)));
        let pairs = pairs.filter(|(from, to)| {
            from != to && addresses[*from].is_ipv4() == addresses[*to].is_ipv4()
        });
        pairs.flat_map(move |(from, to)| {
            let ends = (parties[from], parties[to]);
            traffics.iter().enumerate().map(move |(at, traffic)| {
                let allow = self.verdict(&ends.0, &ends.1, *traffic).allow();
                Cell { from, to, traffic: at, allow }
            })
        })
    }
}

/// One cell of a reachability matrix; the numbers are indices into the arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cell {
    /// The source.
    pub from: usize,
    /// The destination.
    pub to: usize,
    /// The traffic.
    pub traffic: usize,
    /// Whether it is allowed.
    pub allow: bool,
}

impl Case<'_> {
    fn explain(&self, decision: &Decision) -> Side {
        let isolating = match decision.why {
            Why::NoPod | Why::OwnAddress | Why::OwnNode => Vec::new(),
            _ => self.table.isolating(self.direction, self.subject),
        };
        let cookie = |id: &PolicyId| self.table.policy(*id).map(|p| Arc::clone(p.object.cookie()));
        let rule = decision.rule.map(|rule| rule as usize);
        let rule_text = rule.and_then(|rule| {
            let policy = self.table.policy(decision.policy)?;
            nearest::rule_text(&policy.object, self.direction, rule)
        });
        Side {
            direction: self.direction,
            pod: self.table.pod(self.subject).cloned(),
            allow: decision.allow,
            why: decision.why,
            policy: cookie(&decision.policy),
            rule: decision.rule,
            rule_text,
            isolated_by: isolating.iter().filter_map(cookie).collect(),
            nearest: match decision.why {
                Why::Isolated => self.nearest(&isolating),
                _ => None,
            },
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.egress)?;
        write!(f, "{}", self.ingress)
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.direction)?;
        if let Some(pod) = &self.pod {
            write!(f, " of {pod}")?;
        }
        write!(f, ": {}, ", self.verdict())?;
        match self.why {
            Why::NoPod => f.write_str("policies apply to pods only, and this end is not a pod")?,
            Why::OwnAddress => f.write_str("a pod may always call its own address")?,
            Why::OwnNode => f.write_str("between a pod and its own node")?,
            Why::NotIsolated => f.write_str("no policy isolates it")?,
            Why::Rule(tier) => self.fmt_rule(f, tier)?,
            Why::Isolated => {
                write!(f, "isolated by {}", self.isolated_by.join(", "))?;
                f.write_str(", none of whose rules matches")?;
            }
        }
        match &self.nearest {
            Some(nearest) => write!(f, "; {nearest}"),
            None => Ok(()),
        }
    }
}

impl Side {
    fn fmt_rule(&self, f: &mut fmt::Formatter<'_>, tier: Tier) -> fmt::Result {
        let policy = self.policy.as_deref().unwrap_or_default();
        write!(f, "by {policy} {}[{}]", self.direction, self.rule.unwrap_or_default())?;
        if let Some(text) = &self.rule_text {
            write!(f, " ({text})")?;
        }
        match tier {
            Tier::NetworkPolicy => Ok(()),
            _ => write!(f, " in the {} tier", tier.name()),
        }
    }
}

impl fmt::Display for Traffic {
    /// `80/TCP`; `ICMP`, `ICMPv6` or `protocol N` for protocols without ports.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use podswitch_wire::flow_key::proto::{ICMP, ICMPV6};
        match (Protocol::from_number(self.protocol), self.protocol) {
            (Some(protocol), _) => write!(f, "{}/{protocol}", self.port),
            (None, ICMP) => f.write_str("ICMP"),
            (None, ICMPV6) => f.write_str("ICMPv6"),
            (None, other) => write!(f, "protocol {other}"),
        }
    }
}
