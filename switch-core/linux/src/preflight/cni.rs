//! Other network plugins: their configuration, which the runtime may use instead of ours, and their interfaces.

use std::fs;
use std::io;
use std::path::Path;

use super::check::{Check, Options};
use crate::Netlink;

/// Prefixes of interface names, and the plugins that use them.
const INTERFACES: [(&str, &str); 13] = [
    ("flannel", "Flannel"),
    ("cni0", "the bridge plugin (Flannel, k3s)"),
    ("cilium_", "Cilium"),
    ("lxc_health", "Cilium"),
    ("cali", "Calico"),
    ("vxlan.calico", "Calico"),
    ("vxlan-v6.calico", "Calico"),
    ("wireguard.cali", "Calico"),
    ("antrea-", "Antrea"),
    ("ovn-k8s-", "OVN-Kubernetes"),
    ("weave", "Weave Net"),
    ("kube-bridge", "kube-router"),
    ("kindnet", "kindnet"),
];

pub(super) fn checks(options: &Options) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some(folder) = &options.cni_conf_dir {
        checks.push(configuration(folder, &options.conflist));
    }
    let names = Netlink::open(&options.namespace).and_then(|mut netlink| netlink.links());
    if let Ok(links) = names {
        checks.push(interfaces(links.iter().map(|link| link.name.as_str())));
    }
    checks
}

/// The runtime uses the first file by name.
fn configuration(folder: &Path, ours: &str) -> Check {
    const NAME: &str = "CNI configuration";
    let shown = folder.display();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Check::ok(NAME, format!("{shown} is not there yet"));
        }
        Err(error) => {
            let mend = "give --cni-conf-dir the folder that the container runtime reads";
            return Check::fail(NAME, format!("{shown}: {error}"), mend);
        }
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let is_config =
        |name: &String| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
    let mut others: Vec<String> = names.filter(is_config).filter(|name| name != ours).collect();
    others.sort();
    let Some(first) = others.first() else {
        return Check::ok(NAME, format!("no other plugin's in {shown}"));
    };
    let list = others.join(", ");
    let mend = format!("remove the other plugin, then its files in {shown}: {list}");
    if first.as_str() < ours {
        let found = format!(
            "{shown}/{first} comes before {ours}: the runtime takes it, and pods are not ours"
        );
        return Check::fail(NAME, found, mend);
    }
    Check::warn(
        NAME,
        format!("{shown} also has {list}, which the runtime takes where {ours} is missing"),
        mend,
    )
}

fn interfaces<'a>(names: impl Iterator<Item = &'a str>) -> Check {
    const NAME: &str = "other networks";
    let mut found: Vec<String> = Vec::new();
    for name in names {
        if let Some((_, owner)) = INTERFACES.iter().find(|(begin, _)| name.starts_with(begin)) {
            found.push(format!("{name} ({owner})"));
        }
    }
    if found.is_empty() {
        return Check::ok(NAME, "no other network's interfaces");
    }
    // Calico has one interface for each pod.
    let (count, few) = (found.len(), found.iter().take(5).cloned().collect::<Vec<_>>().join(", "));
    let found = format!(
        "{count} interfaces of other networks: {few}: their rules and routes may be in the way"
    );
    Check::warn(
        NAME,
        found,
        "move pods off the node, remove the other network, then reboot the node",
    )
}

#[cfg(test)]
mod tests {
    use super::super::check::Level;
    use super::*;

    #[test]
    fn the_first_file_by_name_decides() {
        let folder =
            std::env::temp_dir().join(format!("podswitch-preflight-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let ours = "10-podswitch.conflist";
        let put = |name: &str| {
            fs::write(folder.join(name), "{}").unwrap();
            configuration(&folder, ours).level
        };
        assert_eq!(put("README"), Level::Ok);
        assert_eq!(put(ours), Level::Ok);
        assert_eq!(put("99-loopback.conf"), Level::Warn);
        assert_eq!(put("05-cilium.conflist"), Level::Fail);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(configuration(&folder, ours).level, Level::Ok);
    }

    #[test]
    fn interfaces_of_others_are_named() {
        assert_eq!(interfaces(["lo", "eth0", "podswitch0"].into_iter()).level, Level::Ok);
        let check = interfaces(["eth0", "flannel.1", "cali0123456789a"].into_iter());
        assert_eq!(check.level, Level::Warn);
        assert!(check.found.contains("Flannel") && check.found.contains("Calico"), "{check:?}");
    }
}
