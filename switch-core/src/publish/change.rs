//! Changes of single objects, and of the settings.

use std::sync::Arc;

use podswitch_dns::Zone;
use podswitch_policy::rule::{ClusterNetworkPolicy, Namespace, NetworkPolicy};
use podswitch_policy::service::model::{EndpointSlice, HostPort, Service, ServiceName};
use podswitch_wire::cidr::Cidr;

use crate::config::{BridgeDomain, Config, Endpoint, PortConfig, RefusedPolicy, RemoteNode, Route};
use crate::id::{Cookie, PortId};

/// Upserts or deletes one object, or replaces the settings. An upsert replaces the object of the
/// same name. Deleting an absent object is a no-op.
#[derive(Clone, Debug)]
pub enum Change {
    /// Upserts a pod.
    Pod(Arc<Endpoint>),
    /// Deletes the pod of this name.
    PodDeleted(Cookie),
    /// Upserts a namespace.
    Namespace(Arc<Namespace>),
    /// Deletes the namespace of this name.
    NamespaceDeleted(Arc<str>),
    /// Upserts another node.
    Node(Arc<RemoteNode>),
    /// Deletes the other node of this name.
    NodeDeleted(Arc<str>),
    /// Upserts a NetworkPolicy.
    Policy(Arc<NetworkPolicy>),
    /// Deletes the NetworkPolicy of this name (cookie).
    PolicyDeleted(Arc<str>),
    /// Upserts a ClusterNetworkPolicy.
    ClusterPolicy(Arc<ClusterNetworkPolicy>),
    /// Deletes the ClusterNetworkPolicy of this name (cookie).
    ClusterPolicyDeleted(Arc<str>),
    /// Upserts a policy of either kind that the caller found invalid. It replaces the one of the
    /// same name and is deleted like that one.
    RefusedPolicy(Arc<RefusedPolicy>),
    /// Upserts a Service.
    Service(Arc<Service>),
    /// Deletes the Service of this name.
    ServiceDeleted(ServiceName),
    /// Upserts an endpoint slice.
    Slice(Arc<EndpointSlice>),
    /// Deletes the slice of this namespace and name.
    SliceDeleted(Arc<str>, Arc<str>),
    /// Sets the host ports of a pod of this node; an empty list deletes them.
    HostPorts(Cookie, Arc<[HostPort]>),
    /// Sets the role of a port.
    Port(PortConfig),
    /// Deletes the role of a port.
    PortDeleted(PortId),
    /// Upserts a route.
    Route(Arc<Route>),
    /// Deletes the route to this destination.
    RouteDeleted(Cidr),
    /// Upserts a bridge domain.
    Bridge(Arc<BridgeDomain>),
    /// Deletes the bridge domain of this name.
    BridgeDeleted(Arc<str>),
    /// Replaces the names that the switch answers for; `None`: none.
    Zone(Option<Arc<Zone>>),
    /// Replaces the settings: all fields of the configuration that are not lists of objects. The
    /// lists are ignored.
    Settings(Arc<Config>),
}
