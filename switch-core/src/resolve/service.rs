//! Services: the translation of a new connection to a Service, and the effect of a change of a
//! Service on the connections that were opened through it (S1 to S11, S15).

use podswitch_policy::service::table::{
    BackendState, DropReason as ServiceDrop, RejectReason, Subject,
};
use podswitch_wire::flow_key::{FlowKey, proto};
use podswitch_wire::parse::tcp_flags::{ACK, FIN, RST, SYN};

use super::decision::{Answer, Denial, DenialCounter};
use crate::action::DropReason;
use crate::id::Cookie;
use crate::nat::select::Refusal;
use crate::pinned::Pinned;
use crate::snapshot::Snapshot;

/// The action for a known connection to a Service that may have changed since it was opened (S10,
/// S11). Evaluated for packets of the original direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnAction {
    /// The connection continues.
    Keep,
    /// The connection ends. Its packet is evaluated as the first of a new one.
    Reopen,
    /// The connection ends, and the client gets a reset or an ICMP error.
    Reset,
}

/// See [`ConnAction`]. `opens`: the packet is one that opens a connection, and there was no reply
/// yet.
pub fn connection_action(snapshot: &Snapshot, pinned: &Pinned, opens: bool) -> ConnAction {
    let protocol = pinned.original.proto;
    if !pinned.is_via_service() {
        // A UDP sender may use the same port for a long time. It must not stay on a flow that is
        // older than the Service at its destination (S10). A retransmitted first packet may move to
        // a new connection, too.
        let predates_service =
            (protocol == proto::UDP || opens) && snapshot.services.is_frontend(&pinned.original);
        return if predates_service { ConnAction::Reopen } else { ConnAction::Keep };
    }
    let backend = pinned.reply.src_addr();
    let standing =
        snapshot.services.backend_state(&pinned.original, (backend, pinned.reply.src_port).into());
    match standing {
        BackendState::Serving => ConnAction::Keep,
        _ if protocol == proto::UDP || opens => ConnAction::Reopen,
        BackendState::NotServing => ConnAction::Keep,
        // The address may belong to another pod by now. That pod's TCP or SCTP stack resets the
        // connection.
        BackendState::Gone | BackendState::NoService
            if !snapshot.is_unassigned_pod_address(backend) =>
        {
            ConnAction::Keep
        }
        BackendState::Gone | BackendState::NoService if protocol == proto::TCP => ConnAction::Reset,
        // The next backend does not know the association and reports that to the client (RFC 9260
        // §8.4).
        BackendState::Gone | BackendState::NoService => ConnAction::Reopen,
    }
}

/// Whether a packet with this key and these flags may be given a backend. For TCP only the first
/// segment of a connection may (S15).
pub fn may_open(key: &FlowKey, tcp_flags: u8) -> bool {
    key.proto != proto::TCP || tcp_flags & (SYN | ACK | FIN | RST) == SYN
}

/// The denial of a connection that a Service refused.
pub(super) fn denial(refusal: Refusal<'_>) -> Denial<'_> {
    let (reason, answer, subject, counter) = match refusal {
        Refusal::Reject(reason, subject) => {
            let reason = match reason {
                RejectReason::NoEndpoints => DropReason::ServiceNoEndpoints,
                RejectReason::UndefinedPort => DropReason::ServiceUndefinedPort,
            };
            let counter = subject.entry.map(DenialCounter::ServiceRejected);
            (reason, Answer::PortUnreachable, subject, counter)
        }
        Refusal::Drop(reason, subject) => {
            let reason = match reason {
                ServiceDrop::NoLocalEndpoints => DropReason::ServiceNoLocalEndpoints,
                ServiceDrop::SourceRange => DropReason::ServiceSourceRange,
                ServiceDrop::Unallocated => DropReason::ServiceUnallocated,
            };
            let counter = subject.entry.map(DenialCounter::ServiceDropped);
            (reason, Answer::Silent, subject, counter)
        }
    };
    let Subject { cookie, .. } = subject;
    let object = cookie.map(|cookie| Cookie::new(cookie.clone()));
    Denial { reason, object, answer, counter }
}
