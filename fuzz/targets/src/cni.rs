//! Any bytes as the input that a container runtime passes to the CNI plugin: environment lines, an empty line, and the
//! network configuration. The same bytes as a frame of the plugin. The result is a request or an error in one line, and
//! the same result again.

use std::collections::BTreeMap;

use podswitch_node::cni::protocol::read_frame;
use podswitch_node::cni::{Request, Verb};

/// See the module's description.
pub(crate) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (head, config) = text.split_once("\n\n").unwrap_or(("", &text));
    let environment: BTreeMap<String, String> = head
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    // The configuration is used as the answer of an IPAM plugin, too.
    let ipam = serde_json::from_str(config).ok();
    for ipam in [None, ipam.as_ref()] {
        let one = Request::read(&environment, config, ipam);
        assert_eq!(one, Request::read(&environment, config, ipam));
        match one {
            Ok(request) => check(&request),
            Err(error) => {
                assert!(error.code > 0 && !error.message.is_empty());
                assert!(!error.message.contains('\n'), "{error}");
            }
        }
    }
    Request::version_of(config);
    let mut bytes = input;
    if let Ok(frame) = read_frame(&mut bytes) {
        assert_eq!(4 + frame.len() + bytes.len(), input.len());
    }
}

fn check(request: &Request) {
    assert!(!request.network.is_empty());
    let Verb::Add(add) = &request.verb else { return };
    assert!(!add.key.container.contains('/') && !add.key.interface.contains('/'));
    let asked = add.ipam.as_ref().map_or(&add.addresses, |ipam| &ipam.addresses);
    for is_ipv6 in [false, true] {
        assert!(asked.iter().filter(|address| address.is_ipv6() == is_ipv6).count() <= 1);
    }
    for set in add.ranges.iter().flatten() {
        assert!(set.iter().all(|range| range.is_ipv6() == set[0].is_ipv6()));
    }
    assert!(add.ports.iter().all(|port| port.port > 0 && port.target > 0));
}
