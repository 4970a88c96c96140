//! The status of Gateway API's objects: conditions, listeners, and the parents of routes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::SystemTime;

use kube::Client;
use podswitch_ingress::{Condition, GatewayStatus, OneGatewayStatus, ParentStatus};
use serde_json::{Value, json};

use super::lease::call;

const API: &str = "/apis/gateway.networking.k8s.io/v1";
const GROUP: &str = "gateway.networking.k8s.io";

/// Who writes, and what of the status is its own.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    /// Of the entries of routes that are ours.
    pub(super) controller: String,
    /// The only Gateway that is served: entries for others are another replica's.
    pub(super) only: Option<(String, String)>,
    /// Addresses and host names of the proxy.
    pub(super) addresses: Vec<String>,
}

/// What an object's status is to be, by its path.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    /// Another generation has another status, which comes later.
    generation: i64,
    what: What,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    Class(Vec<Condition>),
    Gateway(OneGatewayStatus),
    Parents(Vec<ParentStatus>),
}

/// What was written as the holder of the Lease.
pub(super) type Written = HashMap<String, Wanted>;

impl Writer {
    /// Writes what has not been written. One object that fails does not keep the others from it.
    pub(super) async fn write(
        &self,
        client: &Client,
        status: &GatewayStatus,
        written: &mut Written,
    ) -> Result<(), String> {
        let mut all = wanted(status);
        // A route without a parent of ours any more.
        let gone = written.iter().filter(|(path, it)| {
            let is_told = matches!(&it.what, What::Parents(parents) if !parents.is_empty());
            is_told && !all.contains_key(*path)
        });
        let gone: Vec<_> = gone.map(|(path, it)| (path.clone(), it.generation)).collect();
        all.extend(gone.into_iter().map(|(path, generation)| {
            (path, Wanted { generation, what: What::Parents(Vec::new()) })
        }));
        written.retain(|path, it| all.get(path) == Some(it));
        let mut result = Ok(());
        for (path, it) in all {
            if written.contains_key(&path) {
                continue;
            }
            match self.one(client, &path, &it).await {
                Ok(true) => _ = written.insert(path, it),
                Ok(false) => {}
                Err(reason) => result = result.and(Err(reason)),
            }
        }
        result
    }

    /// Returns whether the status is as wanted.
    async fn one(&self, client: &Client, path: &str, it: &Wanted) -> Result<bool, String> {
        // An object that is gone needs no status.
        let Some(before) = call(client, "GET", path, None).await? else { return Ok(true) };
        let meta = &before["metadata"];
        let is_parents = matches!(&it.what, What::Parents(parents) if parents.is_empty());
        if meta["generation"].as_i64().unwrap_or_default() != it.generation && !is_parents {
            return Ok(false);
        }
        #[expect(clippy::disallowed_methods, reason = "the time of day, for those who read it")]
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let status = self.status(&before, it, &now);
        let same = status.as_object().is_some_and(|fields| {
            fields.iter().all(|(key, value)| before["status"][key] == *value)
        });
        if same {
            return Ok(true);
        }
        // With the version that was read: of two writers, one succeeds, and the other reads again.
        let patch =
            json!({"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": status});
        let answer = call(client, "PATCH", &format!("{path}/status"), Some(&patch)).await?;
        Ok(answer.is_some())
    }

    fn status(&self, before: &Value, it: &Wanted, now: &str) -> Value {
        let own = |list: &[Condition], before: &Value| conditions(list, it.generation, before, now);
        let before_all = &before["status"]["conditions"];
        match &it.what {
            What::Class(list) => {
                json!({"conditions": with_others(own(list, before_all), before_all)})
            }
            What::Gateway(gateway) => {
                let listener = |it: &podswitch_ingress::ListenerStatus| {
                    let earlier = before["status"]["listeners"].as_array();
                    let earlier = earlier.into_iter().flatten().find(|old| old["name"] == *it.name);
                    let earlier = earlier.map_or(&Value::Null, |old| &old["conditions"]);
                    let kinds = match it.is_http_route {
                        true => json!([{"group": GROUP, "kind": "HTTPRoute"}]),
                        false => json!([]),
                    };
                    json!({"name": it.name, "supportedKinds": kinds, "attachedRoutes": it.attached,
                        "conditions": own(&it.conditions, earlier)})
                };
                let listeners: Vec<_> = gateway.listeners.iter().map(listener).collect();
                let list = with_others(own(&gateway.conditions, before_all), before_all);
                json!({"addresses": self.addresses(gateway), "conditions": list,
                    "listeners": listeners})
            }
            What::Parents(parents) => {
                let earlier = before["status"]["parents"].as_array();
                let earlier: Vec<_> = earlier.into_iter().flatten().collect();
                let namespace = before["metadata"]["namespace"].as_str().unwrap_or_default();
                let mut all: Vec<_> = earlier
                    .iter()
                    .filter(|old| !self.is_own(old, namespace))
                    .map(|old| (*old).clone())
                    .collect();
                for it in parents {
                    let parent = json!(it.parent);
                    let old = earlier.iter().find(|old| {
                        old["parentRef"] == parent && old["controllerName"] == *self.controller
                    });
                    let old = old.map_or(&Value::Null, |old| &old["conditions"]);
                    all.push(json!({"parentRef": parent, "controllerName": self.controller,
                        "conditions": own(&it.conditions, old)}));
                }
                json!({"parents": all})
            }
        }
    }

    /// Whether an entry of a route's parents is ours to replace.
    fn is_own(&self, entry: &Value, namespace: &str) -> bool {
        let parent = &entry["parentRef"];
        let namespace = parent["namespace"].as_str().unwrap_or(namespace);
        entry["controllerName"] == *self.controller
            && self
                .only
                .as_ref()
                .is_none_or(|only| only.0 == namespace && parent["name"].as_str() == Some(&only.1))
    }

    fn addresses(&self, gateway: &OneGatewayStatus) -> Vec<Value> {
        let of = |text: &str| match text.parse::<IpAddr>() {
            Ok(address) => json!({"type": "IPAddress", "value": address}),
            Err(_) => json!({"type": "Hostname", "value": text}),
        };
        match gateway.addresses.as_slice() {
            [] => self.addresses.iter().map(|text| of(text)).collect(),
            own => own.iter().map(|address| of(&address.to_string())).collect(),
        }
    }
}

fn wanted(status: &GatewayStatus) -> HashMap<String, Wanted> {
    let classes = status.classes.iter().map(|it| {
        let what = What::Class(it.conditions.clone());
        (format!("{API}/gatewayclasses/{}", it.name), Wanted { generation: it.generation, what })
    });
    let gateways = status.gateways.iter().map(|it| {
        let path = format!("{API}/namespaces/{}/gateways/{}", it.namespace, it.name);
        (path, Wanted { generation: it.generation, what: What::Gateway(it.clone()) })
    });
    let routes = status.routes.iter().map(|it| {
        let path = format!("{API}/namespaces/{}/httproutes/{}", it.namespace, it.name);
        (path, Wanted { generation: it.generation, what: What::Parents(it.parents.clone()) })
    });
    classes.chain(gateways).chain(routes).collect()
}

/// The conditions as meta/v1 has them. One that holds as before keeps the time of its transition.
fn conditions(list: &[Condition], generation: i64, before: &Value, now: &str) -> Vec<Value> {
    let one = |it: &Condition| {
        let status = if it.holds { "True" } else { "False" };
        let old = before.as_array().into_iter().flatten().find(|old| old["type"] == it.kind);
        let old = old.filter(|old| old["status"] == status);
        let since = old.and_then(|old| old["lastTransitionTime"].as_str()).unwrap_or(now);
        json!({"type": it.kind, "status": status, "reason": it.reason, "message": it.message,
            "observedGeneration": generation, "lastTransitionTime": since})
    };
    list.iter().map(one).collect()
}

/// Conditions of other types are somebody else's.
fn with_others(mut own: Vec<Value>, before: &Value) -> Vec<Value> {
    let others = before.as_array().into_iter().flatten();
    let others: Vec<_> =
        others.filter(|old| !own.iter().any(|it| it["type"] == old["type"])).cloned().collect();
    own.extend(others);
    own
}

#[cfg(test)]
mod tests {
    use podswitch_ingress::ParentRef;

    use super::*;

    fn parent(name: &str) -> ParentStatus {
        let parent = ParentRef {
            group: None,
            kind: None,
            namespace: None,
            name: name.to_owned(),
            section_name: None,
            port: None,
        };
        let accepted =
            Condition { kind: "Accepted", holds: true, reason: "Accepted", message: String::new() };
        ParentStatus { parent, conditions: vec![accepted] }
    }

    #[test]
    fn entries_of_others_stay() {
        let mut writer =
            Writer { controller: "ours".to_owned(), only: None, addresses: Vec::new() };
        let entry = |controller: &str, name: &str, time: &str| {
            json!({"controllerName": controller, "parentRef": {"name": name}, "conditions": [
                {"type": "Accepted", "status": "True", "lastTransitionTime": time}]})
        };
        let before = json!({"metadata": {"namespace": "a"}, "status": {"parents":
            [entry("other", "g", "1"), entry("ours", "g", "2"), entry("ours", "old", "3")]}});
        let wanted =
            Wanted { generation: 7, what: What::Parents(vec![parent("g"), parent("new")]) };
        let names = |status: &Value| -> Vec<(String, String, String)> {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let all = status["parents"].as_array().into_iter().flatten();
            all.map(|it| {
                let since = text(&it["conditions"][0]["lastTransitionTime"]);
                (text(&it["controllerName"]), text(&it["parentRef"]["name"]), since)
            })
            .collect()
        };
        let row = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        let status = writer.status(&before, &wanted, "now");
        let expected = [row("other", "g", "1"), row("ours", "g", "2"), row("ours", "new", "now")];
        assert_eq!(names(&status), expected);
        assert_eq!(status["parents"][1]["conditions"][0]["observedGeneration"], 7);
        // What another replica serves is its own.
        writer.only = Some(("a".to_owned(), "g".to_owned()));
        let wanted = Wanted { generation: 7, what: What::Parents(Vec::new()) };
        let status = writer.status(&before, &wanted, "now");
        assert_eq!(names(&status), [row("other", "g", "1"), row("ours", "old", "3")]);
    }
}
