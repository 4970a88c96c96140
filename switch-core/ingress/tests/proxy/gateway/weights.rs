//! Weights of backends.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;

/// Answers of a Gateway by backend or status, of so many requests of one connection.
fn count(lab: &Lab, requests: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let address = SocketAddr::new(SAME.parse().unwrap(), lab.http().port());
    let mut client = Client::new(address);
    for _ in 0..requests {
        let response = client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
        let who = match response.status {
            200 => response.service(),
            status => status.to_string(),
        };
        *counts.entry(who).or_default() += 1;
    }
    counts
}

/// HTTPRouteWeight. With 2,000 requests, a share is off by 0.05 in less than one of 100,000 runs.
#[test]
fn requests_are_shared_by_weight() {
    let mut lab = base();
    let backend = |number: u8, weight: u32| json!({"name": format!("infra-backend-v{number}"), "port": 8080, "weight": weight});
    let backends = json!([backend(1, 70), backend(2, 30), backend(3, 0)]);
    lab.add(route("weighted-backends", same(), &[], json!([{"backendRefs": backends}])));
    assert_eq!(lab.publish(), []);
    let counts = count(&lab, 2000);
    assert_eq!(counts.len(), 2, "{counts:?}");
    let first = counts["infra-backend-v1"];
    assert!((1300..=1500).contains(&first), "{counts:?}");
}

/// The share of a backend that is missing gets status 500, that of one without endpoints 503.
#[test]
fn the_share_of_a_missing_backend() {
    let mut lab = base();
    lab.add(json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "empty", "namespace": INFRA}, "spec": {"ports": [{"port": 8080}]}}));
    let backends = json!([
        {"name": "infra-backend-v1", "port": 8080},
        {"name": "missing", "port": 8080},
        {"name": "empty", "port": 8080, "weight": 2},
    ]);
    lab.add(route("shares", same(), &[], json!([{"backendRefs": backends}])));
    lab.publish();
    let counts = count(&lab, 2000);
    for (who, expected) in [("infra-backend-v1", 500), ("500", 500), ("503", 1000)] {
        assert!(counts[who].abs_diff(expected) < 110, "{counts:?}");
    }
    let zero = json!([{"name": "infra-backend-v1", "port": 8080, "weight": 0}]);
    lab.add(route("shares", same(), &[], json!([{"backendRefs": zero}])));
    lab.publish();
    check(&lab, SAME, Ask("GET", "", "/", &[]), 500);
}
