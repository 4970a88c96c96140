//! The rules by which names are answered.

use std::fmt;

/// Why a name is answered as it is. Sections are those of the Kubernetes DNS specification 1.1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// The zone's own name.
    Apex,
    /// `ns.dns.<zone>`: the cluster IPs of the name server's Service.
    NameServer,
    /// 2.2: `dns-version.<zone>`.
    SchemaVersion,
    /// A name that exists only because others are below it (RFC 8020).
    EmptyNonTerminal,
    /// 2.3: a Service with cluster IPs.
    ClusterIps,
    /// 2.4: a headless Service: its ready endpoints.
    Headless,
    /// 2.4.1: a headless Service without a ready endpoint does not exist.
    HeadlessNotReady,
    /// 2.4.1: an endpoint by its hostname, or by its address with dashes.
    Endpoint,
    /// 2.3.2 and 2.4.2: a named port.
    NamedPort,
    /// 2.5: an alias.
    ExternalName,
    /// 2.5: `externalName` is an address, which no alias can point to.
    ExternalAddress,
    /// 2.3.3: a cluster IP.
    ServiceAddress,
    /// 2.4.3: an endpoint's address.
    EndpointAddress,
    /// 2.6: a pod by its address.
    PodAddress,
    /// 2.6: pods have no names here.
    PodsDisabled,
    /// 2.6: no pod of that namespace has the address, or it is none.
    NoSuchPod,
    /// No Service of that name.
    NoSuchService,
    /// No namespace of that name.
    NoSuchNamespace,
    /// The Service has no ready endpoint of that name, and no port of that name and protocol.
    NoSuchEndpoint,
    /// No name of the schema.
    NotInSchema,
    /// An address of a reverse zone of ours that nothing has.
    NoSuchAddress,
}

impl Rule {
    /// Its name for programs, and one sentence for people.
    const fn parts(self) -> (&'static str, &'static str) {
        match self {
            Self::Apex => ("apex", "the zone itself"),
            Self::NameServer => {
                ("name-server", "the zone's name server: cluster IPs of its Service")
            }
            Self::SchemaVersion => ("schema-version", "the version of the schema (2.2)"),
            Self::EmptyNonTerminal => {
                ("empty-non-terminal", "it exists because names below it do (RFC 8020)")
            }
            Self::ClusterIps => ("cluster-ips", "a Service with cluster IPs (2.3)"),
            Self::Headless => ("headless", "a headless Service: its ready endpoints (2.4)"),
            Self::HeadlessNotReady => {
                ("headless-not-ready", "a headless Service without a ready endpoint (2.4.1)")
            }
            Self::Endpoint => {
                ("endpoint", "a ready endpoint by hostname or dashed address (2.4.1)")
            }
            Self::NamedPort => ("named-port", "a named port (2.3.2, 2.4.2)"),
            Self::ExternalName => ("external-name", "an alias: type ExternalName (2.5)"),
            Self::ExternalAddress => {
                ("external-address", "externalName is an address; no alias can point to it (2.5)")
            }
            Self::ServiceAddress => ("service-address", "a cluster IP of a Service (2.3.3)"),
            Self::EndpointAddress => {
                ("endpoint-address", "the address of a ready endpoint (2.4.3)")
            }
            Self::PodAddress => ("pod-address", "a pod by its address (2.6)"),
            Self::PodsDisabled => ("pods-disabled", "names of pods are disabled (2.6)"),
            Self::NoSuchPod => ("no-such-pod", "no pod of that namespace has that address (2.6)"),
            Self::NoSuchService => ("no-such-service", "no Service of that name"),
            Self::NoSuchNamespace => ("no-such-namespace", "no namespace of that name"),
            Self::NoSuchEndpoint => {
                ("no-such-endpoint", "no ready endpoint and no port of that name and protocol")
            }
            Self::NotInSchema => ("not-in-schema", "no name of the schema"),
            Self::NoSuchAddress => {
                ("no-such-address", "no Service and no ready endpoint has that address")
            }
        }
    }

    /// Its name for programs, such as `cluster-ips`; it does not change later.
    pub const fn name(self) -> &'static str {
        self.parts().0
    }

    /// One sentence for people.
    pub const fn text(self) -> &'static str {
        self.parts().1
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
