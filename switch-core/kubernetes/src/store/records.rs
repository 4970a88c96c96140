//! Records about the objects of a store.

use podswitch_core::id::Cookie;

use super::Store;
use crate::read::node::Flannel;
use crate::report::{Action, Finding, Grade, Record};

impl Store {
    /// The records, in the order of arrival of their objects. The cost is proportional to the
    /// number of records.
    pub fn records(&mut self) -> Vec<Record> {
        self.settle();
        let mut numbered = Vec::new();
        for object in &self.noted {
            let Some(entry) = self.objects.get(object) else { continue };
            let facts = &entry.facts;
            let origin = facts.origin.as_ref();
            let said = facts.findings.iter().map(|it| it.record(origin, object, facts.action));
            numbered.extend(said.map(|record| (facts.sequence, record)));
            if entry.conflict {
                let (_, lost) = self.derive(object, facts);
                let lost = lost.iter().map(|it| it.record(origin, object, Action::LeftOut));
                numbered.extend(lost.map(|record| (facts.sequence, record)));
            }
        }
        self.other_networks(&mut numbered);
        numbered.sort_by_key(|(sequence, _)| *sequence);
        let mut records: Vec<Record> = numbered.into_iter().map(|(_, record)| record).collect();
        self.missing_namespaces(&mut records);
        if let Some(node) = self.node.as_ref().filter(|_| self.local_facts().is_none()) {
            records.push(Record::missing_node(node));
        }
        if self.services > 0 && self.service_cidrs().is_empty() {
            records.push(Record::general(
                "no range of Service addresses is known (no ServiceCIDR object, no service range \
                 given): packets to addresses that no Service has leave the node",
            ));
        }
        records
    }

    /// Nodes with a Flannel VNI different from this node's.
    fn other_networks(&self, numbered: &mut Vec<(u64, Record)>) {
        let Some(right) = self.overlay().and_then(|overlay| overlay.vni) else { return };
        for (vni, nodes) in self.vnis.iter().filter(|(vni, _)| **vni != right) {
            for object in nodes {
                let Some(entry) = self.objects.get(object) else { continue };
                let finding = Finding {
                    field: Flannel::VNI_FIELD.to_string(),
                    reason: format!("the VNI is {vni}; that of the overlay is {right}"),
                    grade: Grade::Alarm,
                };
                let record = finding.record(entry.facts.origin.as_ref(), object, Action::None);
                numbered.push((entry.facts.sequence, record));
            }
        }
    }

    /// Namespaces that contain objects but have no Namespace object.
    fn missing_namespaces(&self, records: &mut Vec<Record>) {
        let described = self.namespaces.values().any(|state| state.object.is_some());
        let mut missing: Vec<_> = self
            .namespaces
            .iter()
            .filter(|(_, state)| state.object.is_none() && state.members > 0)
            .collect();
        missing.sort_unstable_by_key(|(_, state)| state.sequence);
        for (name, state) in missing {
            let object = Cookie::new(format!("Namespace/{name}"));
            let policies = state.policies;
            // If other Namespace objects exist, this name is probably misspelled.
            if described && state.pods == 0 && policies > 0 {
                let have = if policies == 1 { "policy has" } else { "policies have" };
                let reason = format!(
                    "there is no such namespace, and no pod in it: {policies} {have} no effect"
                );
                records.push(about(&object, "", reason, Grade::Alarm));
            } else {
                let reason = "there is no such Namespace object; it is treated as having no labels";
                records.push(about(&object, "", reason.to_owned(), Grade::Note));
            }
        }
    }
}

fn about(object: &Cookie, field: &str, reason: String, grade: Grade) -> Record {
    Finding { field: field.to_owned(), reason, grade }.record(None, object, Action::None)
}
