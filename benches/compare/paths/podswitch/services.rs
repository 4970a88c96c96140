//! The Services as objects of the switch's configuration.

use std::sync::Arc;

use podswitch_policy::rule::Protocol as RuleProtocol;
use podswitch_policy::service::model::{
    Endpoint, EndpointSlice, Service, ServicePort, SlicePort, TargetPort, family_of,
};

use super::super::services::{Port, Protocol, Services};
use super::super::{Family, Pod};

/// Services of both families, and a slice for each port of each family.
pub(super) fn objects(
    services: Services,
    server: &Pod,
) -> (Vec<Arc<Service>>, Vec<Arc<EndpointSlice>>) {
    let of = Family::BOTH.map(|family| services.ports(server, family));
    let mut objects: Vec<Service> = Vec::new();
    // The port of the other family is at the same index of the other list.
    for (v4, v6) in of[0].iter().zip(&of[1]) {
        match objects.get_mut(v4.number) {
            Some(service) => service.ports.push(port(v4)),
            None => objects.push(Service {
                ports: vec![port(v4)],
                ..Service::cluster_ip("compare", &name(v4), [v4.at.ip(), v6.at.ip()])
            }),
        }
    }
    let slices = of.iter().flatten().map(|port| Arc::new(slice(port)));
    (objects.into_iter().map(Arc::new).collect(), slices.collect())
}

fn name(port: &Port) -> String {
    format!("s{}", port.number)
}

fn protocol(port: &Port) -> RuleProtocol {
    match port.protocol {
        Protocol::Tcp => RuleProtocol::Tcp,
        Protocol::Udp => RuleProtocol::Udp,
    }
}

fn target(port: &Port) -> u16 {
    port.endpoints.first().map_or(0, |endpoint| endpoint.port())
}

fn port(port: &Port) -> ServicePort {
    ServicePort {
        name: port.protocol.name().into(),
        protocol: protocol(port),
        port: port.at.port(),
        target: TargetPort::Number(target(port)),
        node_port: None,
    }
}

fn slice(port: &Port) -> EndpointSlice {
    let family = family_of(port.at.ip());
    EndpointSlice {
        namespace: "compare".into(),
        name: format!("{}-{}-{family:?}", name(port), port.protocol.name()).to_lowercase().into(),
        service: name(port).into(),
        family,
        ports: vec![SlicePort {
            name: port.protocol.name().into(),
            protocol: protocol(port),
            port: Some(target(port)),
        }],
        endpoints: port.endpoints.iter().map(|e| Endpoint::ready(e.ip()).on("n")).collect(),
    }
}
