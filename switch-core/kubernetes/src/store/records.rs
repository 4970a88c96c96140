//! Records about the objects of a store.

use podswitch_core::id::Cookie;

use super::Store;
use crate::read::node::Flannel;
use crate::report::{Action, Finding, Grade, Record};

impl Store {
    /// The records, in the order of arrival of their objects. The cost depends on the number of
    /// records.
    pub fn records(&mut self) -> Vec<Record> {
        self.settle();
        let mut placed = Vec::new();
        for object in &self.noted {
            let Some(entry) = self.objects.get(object) else { continue };
            let facts = &entry.facts;
            let origin = facts.origin.as_ref();
            let said = facts.findings.iter().map(|it| it.record(origin, object, facts.action));
            placed.extend(said.map(|record| (facts.place, record)));
            if entry.conflict {
                let (_, lost) = self.derive(object, facts);
                let lost = lost.iter().map(|it| it.record(origin, object, Action::LeftOut));
                placed.extend(lost.map(|record| (facts.place, record)));
            }
        }
        self.other_networks(&mut placed);
        placed.sort_by_key(|(place, _)| *place);
        let mut records: Vec<Record> = placed.into_iter().map(|(_, record)| record).collect();
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

    /// Nodes with another Flannel VNI than this node's.
    fn other_networks(&self, placed: &mut Vec<(u64, Record)>) {
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
                placed.push((entry.facts.place, record));
            }
        }
    }

    /// Namespaces that objects are in and that have no object themselves.
    fn missing_namespaces(&self, records: &mut Vec<Record>) {
        let described = self.namespaces.values().any(|state| state.object.is_some());
        let mut missing: Vec<_> = self
            .namespaces
            .iter()
            .filter(|(_, state)| state.object.is_none() && state.members > 0)
            .collect();
        missing.sort_unstable_by_key(|(_, state)| state.place);
        for (name, state) in missing {
            let object = Cookie::new(format!("Namespace/{name}"));
            let policies = state.policies;
            // If other Namespaces exist, this one is probably mistyped.
            if described && state.pods == 0 && policies > 0 {
                let have = if policies == 1 { "policy has" } else { "policies have" };
                let reason = format!(
                    "there is no such namespace, and no pod in it: {policies} {have} no effect"
                );
                records.push(about(&object, "", reason, Grade::Alarm));
            } else {
                let reason = "there is no such Namespace object; it is taken to have no labels";
                records.push(about(&object, "", reason.to_owned(), Grade::Note));
            }
        }
    }
}

fn about(object: &Cookie, field: &str, reason: String, grade: Grade) -> Record {
    Finding { field: field.to_owned(), reason, grade }.record(None, object, Action::None)
}
