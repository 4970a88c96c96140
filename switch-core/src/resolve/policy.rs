//! Network policy: both ends of a connection, evaluated with the real client and the real backend
//! (N15), and in the connection's own direction also for replies (N5).

use podswitch_policy::table::{Decision, PolicyTable};
use podswitch_policy::verdict::Traffic;
use podswitch_wire::flow_key::FlowKey;

use super::decision::{AllowedBy, Answer, Denial, DenialCounter};
use super::ends::Ends;
use super::hints::Hints;
use crate::action::DropReason;
use crate::id::Cookie;
use crate::pinned::{Pinned, SourceNat};
use crate::snapshot::{PortFacts, Snapshot};

/// Evaluates policy for a connection. Each node enforces policy for its own pods.
pub(super) fn evaluate<'s>(
    snapshot: &'s Snapshot,
    pinned: &Pinned,
    ends: &Ends<'_>,
    hints: Option<&Hints<'_>>,
    allowed_by: &mut AllowedBy,
) -> Result<(), Denial<'s>> {
    let table = &*snapshot.policy;
    let client = pinned.original.src_addr();
    let backend = pinned.reply.src_addr();
    let via_service = pinned.original.dst != pinned.reply.src;
    // The backend's node sees only this node's address. So this node evaluates ingress policy for
    // the real client (S8). The backend's node trusts connections from the reserved source ports.
    let hides_client = via_service && pinned.source_nat == SourceNat::Connection;
    let checks_ingress = ends.backend_is_local && !is_evaluated_elsewhere(snapshot, pinned);
    let checks_ingress = checks_ingress || hides_client;
    if !ends.client_is_local && !checks_ingress {
        return Ok(());
    }
    let key = FlowKey { dst_port: pinned.reply.src_port, ..pinned.original };
    let traffic = Traffic::of_flow(&key, via_service);
    let (a, b);
    let source = match hints {
        Some(hints) if hints.client.address() == client => &hints.client,
        _ => {
            a = table.party(client);
            &a
        }
    };
    let destination = match hints {
        Some(hints) if hints.backend.address() == backend => &hints.backend,
        _ => {
            b = table.party(backend);
            &b
        }
    };
    if ends.client_is_local {
        let decision = table.evaluate_egress(source, destination, traffic);
        if !decision.allow {
            return Err(denial(table, &decision, DropReason::PolicyEgress));
        }
        allowed_by.egress = counter(&decision);
    }
    if checks_ingress {
        let decision = table.evaluate_ingress(source, destination, traffic);
        if !decision.allow {
            return Err(denial(table, &decision, DropReason::PolicyIngress));
        }
        allowed_by.ingress = counter(&decision);
    }
    Ok(())
}

/// Whether another node has evaluated ingress policy for the real client. Such a connection comes
/// from that node's address and one of the reserved source ports, which no process of the node
/// uses. The VTEP check has verified that the packet is from that node.
fn is_evaluated_elsewhere(snapshot: &Snapshot, pinned: &Pinned) -> bool {
    matches!(snapshot.port(pinned.origin), PortFacts::Uplink(_))
        && snapshot.nat_ports.contains(&pinned.original.src_port)
        && snapshot.tunnels.is_node_address(pinned.original.src_addr())
}

fn denial<'s>(table: &PolicyTable, decision: &Decision, reason: DropReason) -> Denial<'s> {
    let object = table.policy(decision.policy).map(|p| Cookie::new(p.object.cookie().clone()));
    let counter = counter(decision).map(DenialCounter::Policy);
    Denial { reason, object, answer: Answer::Silent, counter }
}

/// The counter of the rule that decided; `None` if no policy decided.
fn counter(decision: &Decision) -> Option<u32> {
    (decision.counter != 0).then_some(decision.counter)
}
