//! Network policy: both ends of a connection, judged with the real client and the real backend
//! (N15), in the connection's own direction whatever way a packet goes (N5).

use podswitch_policy::table::{Decision, PolicyTable};
use podswitch_policy::verdict::Traffic;
use podswitch_wire::flow_key::FlowKey;

use super::{Answer, Denial, Ends, Likely};
use crate::action::DropReason;
use crate::flow::connection::{Pinned, SourceNat};
use crate::id::Cookie;
use crate::snapshot::{PortFacts, Snapshot};

/// Judges a connection. Each node enforces for its own pods.
pub(super) fn judge(
    snapshot: &Snapshot,
    pinned: &Pinned,
    ends: &Ends<'_>,
    likely: Option<&Likely<'_>>,
) -> Result<(), Denial> {
    let table = &*snapshot.policy;
    let client = pinned.original.src_addr();
    let backend = pinned.reply.src_addr();
    let via_service = pinned.original.dst != pinned.reply.src;
    // Behind the tunnel the backend's node sees this node only: what its ingress policy says of the
    // real client is asked here (S8), and that node believes it of the ports kept for this.
    let hides_client = via_service && pinned.source_nat == SourceNat::Connection;
    let judges_ingress = ends.backend_is_local && !is_judged(snapshot, pinned) || hides_client;
    if !ends.client_is_local && !judges_ingress {
        return Ok(());
    }
    let asked = FlowKey { dst_port: pinned.reply.src_port, ..pinned.original };
    let traffic = Traffic::of_flow(&asked, via_service);
    let (a, b);
    let source = match likely {
        Some(likely) if likely.client.address() == client => &likely.client,
        _ => {
            a = table.party(client);
            &a
        }
    };
    let destination = match likely {
        Some(likely) if likely.backend.address() == backend => &likely.backend,
        _ => {
            b = table.party(backend);
            &b
        }
    };
    if ends.client_is_local {
        let decision = table.judge_egress(source, destination, traffic);
        count(snapshot, &decision);
        if !decision.allow {
            return Err(denial(table, &decision, DropReason::PolicyEgress));
        }
    }
    if judges_ingress {
        let decision = table.judge_ingress(source, destination, traffic);
        count(snapshot, &decision);
        if !decision.allow {
            return Err(denial(table, &decision, DropReason::PolicyIngress));
        }
    }
    Ok(())
}

/// Whether another node judged the connection for its real client, which it hides behind its own
/// address and a port that no process of it uses. What claims to be that node was believed by its
/// tunnel end before.
fn is_judged(snapshot: &Snapshot, pinned: &Pinned) -> bool {
    matches!(snapshot.port(pinned.origin), PortFacts::Uplink(_))
        && snapshot.nat_ports.contains(&pinned.original.src_port)
        && snapshot.tunnels.is_node_address(pinned.original.src_addr())
}

/// Verdicts are counted where they are reached: once for each new connection, each packet that is
/// denied, and each connection judged again.
fn count(snapshot: &Snapshot, decision: &Decision) {
    snapshot.policy_counters.add(decision.counter);
}

fn denial(table: &PolicyTable, decision: &Decision, reason: DropReason) -> Denial {
    let object = table.policy(decision.policy).map(|p| Cookie::new(p.object.cookie().clone()));
    Denial { reason, object, answer: Answer::Silent }
}
