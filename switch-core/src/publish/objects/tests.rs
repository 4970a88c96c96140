//! The objects in force, compared with a simple implementation of the rule: go through the desired
//! objects in order of precedence, and accept each object that is valid and claims nothing that an
//! accepted one has.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::kind::Kind;
use super::object::{Claim, Object};
use super::settle::Again;
use crate::config::{Config, Precedence};
use crate::id::Cookie;
use crate::publish::fault::Faults;
use crate::publish::left_out::{Cause, Effect};
use crate::publish::settings::Settings;

#[derive(Clone, Debug, PartialEq)]
struct Item {
    key: u8,
    claims: Vec<u8>,
    is_good: bool,
    created: u64,
}

impl Item {
    /// Whether its last valid version stays in force.
    fn stays(&self) -> bool {
        self.key.is_multiple_of(3)
    }
}

impl Claim for u8 {
    fn is_exclusive(&self) -> bool {
        *self < 100
    }
}

impl Object for Arc<Item> {
    type Key = u8;
    type Claim = u8;
    /// Whether valid objects are accepted.
    type Context<'a> = bool;

    fn wanted(_: &Config) -> Cow<'_, [Self]> {
        Cow::Borrowed(&[])
    }

    fn key(&self) -> u8 {
        self.key
    }

    fn cookie(&self) -> Cookie {
        Cookie::new(format!("Item/{}", self.key))
    }

    fn is_shared(&self, other: &Self) -> bool {
        Arc::ptr_eq(self, other)
    }

    fn is_same(&self, other: &Self) -> bool {
        self == other
    }

    fn precedence(&self) -> Precedence {
        Precedence { created: self.created, ..Precedence::default() }
    }

    fn claims(&self, settings: &Settings, each: &mut dyn FnMut(u8)) {
        // Under some names, nodes have other claims.
        let shift = settings.node.name.len() as u8;
        self.claims.iter().for_each(|claim| each((claim + shift) % 8));
        each(100 + self.key % 2);
    }

    fn check(&self, open: bool, faults: &mut Faults) {
        if !self.is_good || !open {
            faults.add("is_good", "it is not");
        }
    }

    fn describe(&self, claim: &u8) -> (String, String) {
        ("claims".into(), claim.to_string())
    }

    fn fallback(&self, last: Option<&Self>) -> Option<(Self, Effect)> {
        let closed = || Arc::new(Item { claims: Vec::new(), ..(**self).clone() });
        self.stays().then(|| match last {
            Some(last) => (last.clone(), Effect::LastVersion),
            None => (closed(), Effect::Isolated),
        })
    }
}

/// The desired objects and those in force according to the rule.
#[derive(Clone, Debug, Default)]
struct Plain {
    wanted: BTreeMap<u8, Arc<Item>>,
    /// The last accepted versions of objects that have been desired ever since.
    last: BTreeMap<u8, Arc<Item>>,
    open: bool,
    shift: u8,
}

impl Plain {
    fn taken(&self) -> BTreeMap<u8, Arc<Item>> {
        let mut order: Vec<&Arc<Item>> = self.wanted.values().collect();
        order.sort_by_key(|item| (std::cmp::Reverse(item.created), item.key));
        let (mut taken, mut held) = (BTreeMap::new(), Vec::new());
        for item in order {
            let claims: Vec<u8> = item.claims.iter().map(|c| (c + self.shift) % 8).collect();
            if item.is_good && self.open && !claims.iter().any(|c| held.contains(c)) {
                held.extend(claims);
                taken.insert(item.key, item.clone());
            }
        }
        taken
    }

    fn in_force(&mut self) -> BTreeMap<u8, Arc<Item>> {
        let taken = self.taken();
        self.last.retain(|key, _| self.wanted.contains_key(key));
        self.last.extend(taken.clone());
        let mut in_force = taken;
        for (key, item) in self.wanted.iter().filter(|(_, item)| item.stays()) {
            let closed = || Arc::new(Item { claims: Vec::new(), ..(**item).clone() });
            let instead = || self.last.get(key).cloned().unwrap_or_else(closed);
            in_force.entry(*key).or_insert_with(instead);
        }
        in_force
    }
}

#[derive(Clone, Debug)]
enum Step {
    Changes(Vec<(u8, Option<Item>)>),
    Whole(Vec<Item>),
    /// The last list with one of its elements replaced.
    Replace(prop::sample::Index, Item),
    Settings(bool, u8),
}

fn item() -> impl Strategy<Value = Item> {
    (0u8..12, prop::collection::vec(0u8..8, 0..3), prop::bool::weighted(0.8), 0u64..3)
        .prop_map(|(key, claims, is_good, created)| Item { key, claims, is_good, created })
}

fn step() -> impl Strategy<Value = Step> {
    let change = (item(), prop::bool::weighted(0.7))
        .prop_map(|(item, there)| (item.key, there.then_some(item)));
    prop_oneof![
        6 => prop::collection::vec(change, 1..4).prop_map(Step::Changes),
        2 => prop::collection::vec(item(), 0..14).prop_map(Step::Whole),
        2 => (any::<prop::sample::Index>(), item()).prop_map(|(at, item)| Step::Replace(at, item)),
        1 => (prop::bool::weighted(0.8), 0u8..3).prop_map(|(open, shift)| Step::Settings(open, shift)),
    ]
}

/// The desired one of two objects with the same key in a list.
fn wanted(list: &[Arc<Item>]) -> BTreeMap<u8, Arc<Item>> {
    let mut map: BTreeMap<u8, Arc<Item>> = BTreeMap::new();
    for item in list {
        let first = map.entry(item.key).or_insert_with(|| item.clone());
        if item.created > first.created {
            *first = item.clone();
        }
    }
    map
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn agrees_with_the_simple_rule(
        steps in prop::collection::vec((step(), prop::bool::weighted(0.3)), 1..25),
    ) {
        let mut plain = Plain { open: true, ..Plain::default() };
        let (mut kind, mut settings): (Kind<Arc<Item>>, Settings) = Default::default();
        let (mut mirror, mut list): (BTreeMap<u8, Arc<Item>>, Vec<Arc<Item>>) = Default::default();
        for (step, is_undone) in steps {
            let (before, list_before, settings_before) =
                (plain.clone(), list.clone(), settings.clone());
            let mut again = Again::No;
            match step {
                Step::Changes(changes) => {
                    for (key, item) in changes {
                        let item = item.map(Arc::new);
                        kind.stage(key, item.clone());
                        match item {
                            Some(item) => drop(plain.wanted.insert(key, item)),
                            None => drop(plain.wanted.remove(&key)),
                        }
                    }
                }
                Step::Whole(items) => {
                    list = items.into_iter().map(Arc::new).collect();
                    kind.stage_all(&list);
                    plain.wanted = wanted(&list);
                }
                Step::Replace(at, item) => {
                    match list.is_empty() {
                        true => list.push(Arc::new(item)),
                        false => {
                            let at = at.index(list.len());
                            list[at] = Arc::new(item);
                        }
                    }
                    kind.stage_all(&list);
                    plain.wanted = wanted(&list);
                }
                Step::Settings(open, shift) => {
                    plain.open = open;
                    plain.shift = shift;
                    settings.node.name = "x".repeat(shift.into()).into();
                    again = match settings == settings_before {
                        true => Again::Check,
                        false => Again::Claims,
                    };
                }
            }
            kind.settle(&settings, plain.open, again);
            if is_undone {
                kind.undo(&settings_before);
                (plain, list, settings) = (before, list_before, settings_before);
            } else {
                let difference = kind.difference();
                for item in &difference.removed {
                    prop_assert_eq!(mirror.remove(&item.key), Some(item.clone()));
                }
                for change in difference.changed {
                    let known = mirror.insert(change.after.key, change.after);
                    prop_assert_eq!(known, change.before);
                }
                kind.commit();
                let in_force = plain.in_force();
                prop_assert_eq!(&mirror, &in_force);
            }
            let now: BTreeMap<u8, Arc<Item>> =
                kind.iter().map(|item| (item.key, item.clone())).collect();
            prop_assert_eq!(&now, &mirror);
            let taken = plain.taken();
            for claim in 0..8 {
                let holder = taken.values().find(|item| {
                    item.claims.iter().any(|c| (c + plain.shift) % 8 == claim)
                });
                prop_assert_eq!(kind.holder(&claim), holder);
            }
            let mut left_out = Vec::new();
            kind.left_out(&mut left_out);
            let mut names: Vec<String> = left_out
                .iter()
                .filter(|l| l.cause != Cause::Duplicate)
                .map(|l| l.error.object.to_string())
                .collect();
            names.dedup();
            let expected: Vec<String> = plain
                .wanted
                .keys()
                .filter(|key| !taken.contains_key(*key))
                .map(|key| format!("Item/{key}"))
                .collect();
            prop_assert_eq!(names, expected);
        }
    }
}

/// Lists that share their objects cost a comparison of pointers: none of the objects is staged.
#[test]
fn shared_objects_are_not_staged() {
    let item = |key| Arc::new(Item { key, claims: Vec::new(), is_good: true, created: 0 });
    let settings = Settings::default();
    let mut kind = Kind::default();
    let mut list: Vec<Arc<Item>> = (0..8).map(item).collect();
    kind.stage_all(&list);
    kind.settle(&settings, true, Again::No);
    kind.commit();
    list[3] = item(9);
    kind.stage_all(&list);
    assert_eq!(kind.staged().len(), 2, "one goes, one comes");
    kind.settle(&settings, true, Again::No);
    let difference = kind.difference();
    assert_eq!((difference.removed.len(), difference.changed.len()), (1, 1));
}

/// An object that waits gets its claim as soon as the object that has it is deleted. When it is
/// deleted itself, the next one gets the claim.
#[test]
fn the_next_claimant_is_put_in_force() {
    let item = |key: u8, claims: &[u8], created| {
        Arc::new(Item { key, claims: claims.to_vec(), is_good: true, created })
    };
    let settings = Settings::default();
    let mut kind = Kind::default();
    let mut publish = |changes: Vec<(u8, Option<Arc<Item>>)>| {
        changes.into_iter().for_each(|(key, item)| kind.stage(key, item));
        kind.settle(&settings, true, Again::No);
        let mut taken = Vec::new();
        kind.newly_taken(&mut taken);
        kind.commit();
        let mut keys: Vec<u8> = kind.iter().map(|item| item.key).collect();
        keys.sort_unstable();
        (keys, taken.len())
    };
    let three = [item(1, &[1], 3), item(2, &[1, 2], 2), item(4, &[2], 1)];
    let changes = three.iter().map(|item| (item.key, Some(item.clone()))).collect();
    assert_eq!(publish(changes), (vec![1, 4], 0));
    assert_eq!(publish(vec![(1, None)]), (vec![2], 1), "2 arrives, and has the claim of 4");
    assert_eq!(publish(vec![(2, None)]), (vec![4], 1));
}
