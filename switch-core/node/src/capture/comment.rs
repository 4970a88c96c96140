//! The comment of a captured frame: what happened to it, its owner, and which objects decided.

use std::fmt::Write;
use std::net::SocketAddr;

use podswitch_core::capture::{CaptureOutcome, CapturedFrame};
use podswitch_core::engine::Shared;
use podswitch_core::packet::Origin;
use podswitch_core::pinned::Pinned;
use podswitch_core::records::End;
use podswitch_core::snapshot::Snapshot;
use podswitch_policy::verdict::Traffic;
use podswitch_wire::flow_key::FlowKey;

use super::interfaces::port_name;
use crate::events::{DropSummary, Shown, direction_name, protocol_name, tcp_flags};

/// The comment of a frame. Its connection is looked up in `shared`, because the connection keeps
/// its Service and backend even if the state has changed.
pub(super) fn comment(frame: &CapturedFrame, shared: &Shared) -> String {
    let snapshot = &*frame.snapshot;
    let mut text = match &frame.fate {
        CaptureOutcome::Dropped(record) => {
            return format!("dropped: {}", DropSummary(record, None));
        }
        CaptureOutcome::Forwarded(port) => format!("forwarded to {}", port_name(snapshot, *port)),
        CaptureOutcome::Consumed => "for the switch itself".to_owned(),
        CaptureOutcome::Held => "held until the datagram is complete".to_owned(),
        CaptureOutcome::Sent { origin: Origin::Originated, .. } => {
            "sent by the switch itself".to_owned()
        }
        CaptureOutcome::Sent { ingress, .. } => {
            format!("sent, received by {}", port_name(snapshot, *ingress))
        }
        other => format!("{other:?}"),
    };
    if frame.is_tunnel {
        text.push_str(", in the tunnel");
    }
    let Some(key) = &frame.key else { return text };
    // Writing to a string does not fail.
    let _ = write_ends(&mut text, frame, key);
    if let CaptureOutcome::Forwarded(_) = frame.fate
        && let Some(known) = shared.tracker.find_key(key)
    {
        let _ = write_connection(&mut text, key, &known.pinned, snapshot);
    }
    text
}

fn write_ends(text: &mut String, frame: &CapturedFrame, key: &FlowKey) -> std::fmt::Result {
    let snapshot = Some(&*frame.snapshot);
    let src = End::named(key.src_addr(), key.src_port, snapshot);
    let dst = End::named(key.dst_addr(), key.dst_port, snapshot);
    write!(text, ": {}", protocol_name(key.proto))?;
    if frame.tcp_flags != 0 {
        write!(text, " [{}]", tcp_flags(frame.tcp_flags))?;
    }
    write!(text, " {} -> {}", Shown(&src), Shown(&dst))
}

fn write_connection(
    text: &mut String,
    key: &FlowKey,
    pinned: &Pinned,
    snapshot: &Snapshot,
) -> std::fmt::Result {
    let (original, via_service) = (&pinned.original, pinned.is_via_service());
    let server = SocketAddr::new(pinned.reply.src_addr(), pinned.reply.src_port);
    if *key != *original {
        text.push_str(", reply");
    }
    if via_service {
        if let Some(service) = snapshot.services.name(original) {
            write!(text, " of {service}")?;
        }
        write!(text, " = {server}")?;
    }
    let traffic = Traffic { protocol: original.proto, port: server.port(), via_service };
    let explanation = snapshot.policy.explain(original.src_addr(), server.ip(), traffic);
    if explanation.allow() {
        for side in [&explanation.egress, &explanation.ingress] {
            if let (Some(policy), Some(rule)) = (&side.policy, side.rule) {
                write!(text, ", allowed by {policy} {}[{rule}]", direction_name(side.direction))?;
            }
        }
    }
    Ok(())
}
