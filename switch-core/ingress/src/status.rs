//! What the status of Gateway API's objects is to say.

pub use crate::gateway_api::ParentRef;

/// A condition (meta/v1), without the time of its last transition, which whoever writes it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Such as `Accepted`.
    pub kind: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// One word.
    pub reason: &'static str,
    /// For people; may be empty.
    pub message: String,
}

/// The status of the objects of Gateway API that are ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayStatus {
    /// Of GatewayClasses.
    pub classes: Vec<ClassStatus>,
    /// Of Gateways.
    pub gateways: Vec<OneGatewayStatus>,
    /// Of HTTPRoutes.
    pub routes: Vec<RouteStatus>,
}

/// The status of a GatewayClass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassStatus {
    /// Its name.
    pub name: String,
    /// The generation that is described.
    pub generation: i64,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// The status of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneGatewayStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The generation that is described.
    pub generation: i64,
    /// The addresses that it asks for. Empty: those of the proxy.
    pub addresses: Vec<std::net::IpAddr>,
    /// Its conditions.
    pub conditions: Vec<Condition>,
    /// Its listeners, in their order.
    pub listeners: Vec<ListenerStatus>,
}

/// The status of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// Whether HTTPRoutes are supported and allowed.
    pub is_http_route: bool,
    /// Routes that are attached.
    pub attached: usize,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// The status of an HTTPRoute, as far as Gateways of ours are its parents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The generation that is described.
    pub generation: i64,
    /// Its parents, in the order of the route.
    pub parents: Vec<ParentStatus>,
}

/// The status of a route at one parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentStatus {
    /// The parent as the route names it.
    pub parent: ParentRef,
    /// What is the case there.
    pub conditions: Vec<Condition>,
}
