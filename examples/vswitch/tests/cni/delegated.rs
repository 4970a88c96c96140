//! Another IPAM plugin gives the addresses.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// Gives 10.1.0.50 and notes what it is called for.
const PLUGIN: &str = r#"#!/bin/sh
echo "$CNI_COMMAND" >> "$(dirname "$0")/calls"
cat > /dev/null
case "$CNI_COMMAND" in
ADD) if [ -e "$(dirname "$0")/fail" ]; then echo '{"cniVersion": "1.0.0", "code": 7, "msg": "no"}'; exit 1; fi
    echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.50/24", "gateway": "10.1.0.1"}], "dns": {"domain": "d"}}' ;;
STATUS|GC) echo '{"cniVersion": "1.0.0", "code": 4, "msg": "unknown"}'; exit 1 ;;
esac
"#;

#[test]
fn another_plugin_gives_the_addresses() {
    podswitch_testkit::require_tap!();
    let world = World::new("");
    let switch = world.start(&[]);
    let folder = world.folder.path("plugins");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("fixed"), PLUGIN).unwrap();
    fs::set_permissions(folder.join("fixed"), fs::Permissions::from_mode(0o755)).unwrap();
    let calls = || {
        let text = fs::read_to_string(folder.join("calls")).unwrap_or_default();
        let _ = fs::remove_file(folder.join("calls"));
        text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let config = json!({"ipam": {"type": "fixed"}});
    let (x, y) = (Container::new(), Container::new());
    let added = world.of("ADD", &x, None, &config);
    assert_eq!(added.addresses(), [IpAddr::from([10, 1, 0, 50])]);
    assert_eq!(added.value["dns"]["domain"], "d");
    assert_eq!(calls(), ["ADD"]);

    // It gives an address that is held: what it gave is taken back.
    let refused = world.of("ADD", &y, None, &config);
    assert_eq!(refused.error().0, 11);
    assert_eq!(calls(), ["ADD", "DEL"]);
    fs::write(folder.join("fail"), "").unwrap();
    assert_eq!(world.of("ADD", &y, None, &config).error(), (7, "no"));
    assert_eq!(calls(), ["ADD"]);
    let mut checked = config.clone();
    checked["prevResult"] = added.value;
    assert!(world.of("CHECK", &x, None, &checked).ok);
    assert!(world.call("STATUS", &[], &config).ok, "it is older than STATUS");
    assert!(world.of("DEL", &x, None, &config).ok);
    assert_eq!(calls(), ["CHECK", "STATUS", "DEL"]);
    assert_eq!(world.leases().len(), 0);

    let missing = world.of("ADD", &y, None, &json!({"ipam": {"type": "nowhere"}}));
    let (code, text) = missing.error();
    assert!(
        code == 7 && text.contains("ipam.type: there is no plugin nowhere in CNI_PATH"),
        "{text}"
    );
    assert_eq!(switch.stop(), Some(0));
}
