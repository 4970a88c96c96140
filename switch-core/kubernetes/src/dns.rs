//! What an object says of names: Services with their `externalName`, slices with hostnames, pods, namespaces. Checked as
//! for the switch; what that leaves out has no name either. Slices of headless Services, which the switch does not need,
//! are here.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_dns::facts::{
    EndpointFacts, Facts, PodFacts, PortFacts, Protocol, ServiceFacts, ServiceKind, SliceFacts,
};
use podswitch_policy::rule;
use podswitch_policy::service::model::{Service, ServicePort, ServiceType};

use crate::api::service as api;
use crate::object::{Body, Loaded, Object, Typed};
use crate::options::Options;
use crate::read::names::Names;
use crate::read::pod::protocol;
use crate::read::{Content, Context, namespace_name, read};
use crate::source::Manifests;
use crate::validate::address::host_ip;
use crate::validate::name::dns_label;

/// The label that names a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl Object {
    /// What it says of names. `None`: nothing, or it cannot be used.
    pub fn name_facts(&self, options: &Options) -> Option<Facts> {
        facts(&self.0, options)
    }
}

impl Manifests {
    /// What the objects say of names, with the object that says it, in the order of the manifests.
    pub fn name_facts(&self, options: &Options) -> impl Iterator<Item = (&str, Facts)> {
        let objects = self.objects();
        objects.filter_map(move |it| Some((it.cookie.as_str(), facts(it, options)?)))
    }
}

fn facts(object: &Loaded, options: &Options) -> Option<Facts> {
    let mut names = Names::default();
    let mut cx = Context { names: &mut names, options };
    let reading = read(&mut cx, object, None);
    of_content(object, &reading.content)
}

/// What an object that was read says of names.
pub(crate) fn of_content(object: &Loaded, content: &Content) -> Option<Facts> {
    let Body::Good(meta, typed) = &object.body else { return None };
    Some(match (typed, content) {
        (Typed::Namespace, Content::Namespace(namespace)) => {
            Facts::Namespace(namespace.name.clone())
        }
        (Typed::Service(written), Content::Service(it)) => {
            Facts::Service(Arc::new(service(written, &it.service)))
        }
        (Typed::EndpointSlice(it), Content::Slice(_)) => {
            let (_, owner) = meta.labels().find(|(key, _)| *key == SERVICE_NAME)?;
            Facts::Slice(Arc::new(SliceFacts {
                namespace: namespace_name(meta.namespace.as_deref()).into(),
                name: meta.name.as_deref()?.into(),
                service: Some(owner).filter(|name| !name.is_empty())?.into(),
                cluster: None,
                ports: it.ports.iter().flatten().filter_map(slice_port).collect(),
                endpoints: it.endpoints.iter().flatten().map(endpoint).collect(),
            }))
        }
        (Typed::Pod(_), Content::Pod(pod)) => {
            let workload = &pod.endpoint.workload;
            let mut addresses = workload.addresses.clone();
            addresses.extend(pod.more.iter().flat_map(|more| &more.host_ips));
            let (namespace, name) = (workload.namespace.clone(), workload.name.clone());
            Facts::Pod(Arc::new(PodFacts { namespace, name, addresses }))
        }
        _ => return None,
    })
}

fn service(written: &api::Service, it: &Service) -> ServiceFacts {
    let spec = written.spec.as_ref();
    let first = spec.and_then(|spec| match spec.cluster_ips.as_deref() {
        Some([first, ..]) => Some(first),
        _ => spec.cluster_ip.as_ref(),
    });
    let external = spec.and_then(|spec| spec.external_name.as_deref()).unwrap_or_default();
    let kind = match it.kind {
        ServiceType::ExternalName => ServiceKind::External(external.into()),
        _ if first.is_some_and(|text| text == "None") => ServiceKind::Headless,
        _ => ServiceKind::ClusterIps(it.cluster_ips.clone()),
    };
    let port = |port: &ServicePort| PortFacts {
        name: port.name.clone(),
        protocol: of_model(port.protocol),
        number: Some(port.port),
    };
    ServiceFacts {
        namespace: it.name.namespace.clone(),
        name: it.name.name.clone(),
        kind,
        ports: it.ports.iter().map(port).collect(),
        publish_not_ready: it.publish_not_ready,
    }
}

fn of_model(protocol: rule::Protocol) -> Protocol {
    match protocol {
        rule::Protocol::Tcp => Protocol::Tcp,
        rule::Protocol::Udp => Protocol::Udp,
        rule::Protocol::Sctp => Protocol::Sctp,
    }
}

/// `None`: of a protocol that is not known.
fn slice_port(port: &api::EndpointPort) -> Option<PortFacts> {
    let text = port.protocol.as_deref().filter(|text| !text.is_empty());
    Some(PortFacts {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: of_model(protocol(text).ok()?),
        number: port.port.and_then(|number| u16::try_from(number).ok()).filter(|it| *it > 0),
    })
}

fn endpoint(endpoint: &api::Endpoint) -> EndpointFacts {
    let texts = endpoint.addresses.iter().flatten();
    let addresses: Vec<IpAddr> = texts.filter_map(|text| host_ip(text).ok()).collect();
    // What is no label cannot be part of a name; the address stands in for it.
    let hostname = endpoint.hostname.as_deref().filter(|name| dns_label(name).is_ok());
    let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready);
    EndpointFacts { addresses, hostname: hostname.map(Into::into), is_ready: ready.unwrap_or(true) }
}
