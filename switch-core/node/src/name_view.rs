//! What a name would be answered and why, for people and programs.

use std::fmt;

use podswitch_dns::{
    Explained, MAX_SIZE, MIN_SIZE, Name, Record, Transport, Zone, explain, type_name,
};
use serde::{Deserialize, Serialize};

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NameView {
    /// The name.
    pub name: String,
    /// Type of the records asked for.
    #[serde(rename = "type")]
    pub qtype: String,
    /// Response code; `NOT-OURS`: another zone's.
    pub rcode: String,
    /// The names on the way to the answer.
    pub steps: Vec<NameStep>,
    /// Records of the answer section.
    pub answer: Vec<NameLine>,
    /// Records of the authority section.
    pub authority: Vec<NameLine>,
    /// Records of the additional section.
    pub additional: Vec<NameLine>,
    /// The last alias leads to another zone, whose records a forwarder adds.
    pub partial: bool,
    /// Bytes of the whole answer.
    pub bytes: usize,
    /// Whether it is truncated by UDP.
    pub truncated: NameTruncated,
}

/// One name on the way to an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NameStep {
    /// The name.
    pub name: String,
    /// The rule that it is answered by; `other-zone`: none of ours.
    pub rule: String,
    /// The same for people.
    pub reason: String,
    /// The object that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NameLine {
    /// Owner.
    pub name: String,
    /// Time to live in seconds.
    pub ttl: u32,
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Data as in a zone file.
    pub data: String,
}

/// Which answers by UDP are truncated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NameTruncated {
    /// For clients that receive 512 bytes.
    pub plain: bool,
    /// For clients that receive more.
    pub edns: bool,
}

impl NameView {
    /// What is answered to a question, and why.
    pub fn of(zone: &Zone, name: &Name, qtype: u16) -> Self {
        let it: Explained = explain(zone, name, qtype);
        let is_cut = |size: Option<u16>| {
            let query = podswitch_dns::query(0, name, qtype, size);
            let mut out = [0; MAX_SIZE];
            let outcome = podswitch_dns::answer(zone, &query, Transport::Udp, 0, &mut out);
            matches!(outcome, podswitch_dns::Outcome::Answered(it) if it.is_truncated)
        };
        let truncated = NameTruncated { plain: is_cut(None), edns: is_cut(Some(MAX_SIZE as u16)) };
        let steps = it.steps.into_iter().map(|step| NameStep {
            name: step.name,
            rule: step.rule.map_or("other-zone", |rule| rule.name()).to_owned(),
            reason: step
                .rule
                .map_or("another zone's: for a forwarder", |rule| rule.text())
                .to_owned(),
            object: step.object,
        });
        let mut sections: [Vec<NameLine>; 3] = Default::default();
        for Record { section, name, ttl, kind, data } in it.records {
            let at = ["answer", "authority", "additional"].iter().position(|it| *it == section);
            sections[at.unwrap_or(2)].push(NameLine { name, ttl, kind, data });
        }
        let [answer, authority, additional] = sections;
        Self {
            name: name.to_string(),
            qtype: type_name(qtype),
            rcode: it.rcode.map_or("NOT-OURS", |rcode| rcode.name()).to_owned(),
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

impl fmt::Display for NameView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.name, self.qtype, self.rcode)?;
        if self.bytes > 0 {
            write!(f, ", {} bytes", self.bytes)?;
        }
        match self.truncated {
            NameTruncated { edns: true, .. } => write!(f, ", by UDP truncated")?,
            NameTruncated { plain: true, .. } => {
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
            for NameLine { name, ttl, kind, data } in lines {
                write!(f, "\n  {name} {ttl} IN {kind} {data}")?;
            }
        }
        Ok(())
    }
}
