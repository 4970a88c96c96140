//! Leases and pool together, with crashes at every step.

use std::collections::{BTreeMap, BTreeSet};

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::ipam::AddressRange;
use super::key::Key;
use super::leases::{Leases, file_name, files};
use super::shared::State;

const COOL_DOWN: Duration = Duration::from_secs(5);

fn key(number: u64) -> Key {
    Key { container: format!("c{number}"), interface: "eth0".into() }
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        // A file system in memory if there is one, as in production.
        let memory = PathBuf::from("/dev/shm");
        let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let path = base.join(format!("podswitch-leases-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Reproducible pseudo-random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Ten thousand ADDs and DELs, with occasional crashes between any two of their steps. Attachments
/// that were confirmed stay, no address has two holders, an address is not allocated again while it
/// cools down, and nothing is left at the end.
#[test]
fn crashes_neither_leak_nor_duplicate_addresses() {
    let folder = Folder::new("crash");
    let open = || State::open(&folder.0, "boot", COOL_DOWN).unwrap();
    let ranges = [AddressRange::of("10.1.0.0/26".parse().unwrap())];
    let ranges6 = [AddressRange::of("fd00:1::/122".parse().unwrap())];
    let mut random = Random(7);
    let (mut state, notes) = open();
    assert_eq!(notes, [""; 0]);
    // Attachments that were confirmed to the runtime and not deleted.
    let mut answered: BTreeMap<u64, Vec<IpAddr>> = BTreeMap::new();
    // ADDs that were not confirmed; the runtime will send a DEL.
    let mut unanswered: BTreeSet<u64> = BTreeSet::new();
    let mut gone: BTreeMap<IpAddr, Duration> = BTreeMap::new();
    let (mut now, mut next, mut crashes) = (Duration::ZERO, 0, 0);
    for _ in 0..10_000 {
        now += Duration::from_millis(200);
        let crash_at = random.below(40);
        let is_add = answered.len() + unanswered.len() < 40 && random.below(2) == 0;
        let mut crashed = true;
        if is_add {
            next += 1;
            let key = key(next);
            unanswered.insert(next);
            'crash: {
                let mut lease = state.store.blank(&key);
                for ranges in [&ranges, &ranges6] {
                    let address = state.pool.allocate(&key, ranges, now, |_| None).unwrap();
                    let released = gone.get(&address).copied();
                    assert!(released.is_none_or(|at| now - at >= COOL_DOWN), "{address}");
                    lease.addresses.push(address);
                }
                if crash_at == 0 {
                    break 'crash;
                }
                if crash_at == 1 {
                    // Crash in the middle of a write.
                    fs::write(folder.0.join(format!(".{}", file_name(&key))), "{\"form\"").unwrap();
                    break 'crash;
                }
                state.store.write(&lease).unwrap();
                if crash_at == 2 {
                    break 'crash;
                }
                lease.attached = true;
                state.store.write(&lease).unwrap();
                state.leases.insert(key.clone(), lease.clone());
                if crash_at == 3 {
                    break 'crash;
                }
                unanswered.remove(&next);
                answered.insert(next, lease.addresses);
                crashed = false;
            }
        } else {
            let all: Vec<u64> = answered.keys().chain(&unanswered).copied().collect();
            if all.is_empty() {
                continue;
            }
            let number = all[random.below(all.len() as u64) as usize];
            let key = key(number);
            let addresses = state.pool.of(&key).to_vec();
            'crash: {
                if crash_at == 0 {
                    break 'crash;
                }
                state.store.release(&key, now).unwrap();
                gone.extend(addresses.iter().map(|address| (*address, now)));
                if crash_at == 1 {
                    break 'crash;
                }
                state.leases.remove(&key);
                state.pool.release(&key, now);
                crashed = false;
            }
            if !crashed {
                answered.remove(&number);
                unanswered.remove(&number);
            } else if let Some(addresses) = answered.remove(&number) {
                // The runtime does not know whether the DEL was performed, and repeats it.
                assert!(addresses.len() == 2);
                unanswered.insert(number);
            }
        }
        if crashed {
            crashes += 1;
            let (opened, notes) = open();
            assert_eq!(notes, [""; 0]);
            state = opened;
        }
        let mut holders: BTreeMap<IpAddr, u64> = BTreeMap::new();
        for (number, addresses) in &answered {
            assert_eq!(state.pool.of(&key(*number)), addresses, "confirmed addresses stay");
            for address in addresses {
                assert_eq!(holders.insert(*address, *number), None, "{address} twice");
            }
        }
        let known = answered.len() + unanswered.len();
        assert!(state.leases.len() <= known, "{} leases of {known}", state.leases.len());
    }
    assert!(crashes > 400, "{crashes}");
    for number in answered.keys().chain(&unanswered) {
        state.store.release(&key(*number), now).unwrap();
    }
    let (state, notes) = open();
    assert!(state.leases.is_empty() && state.pool.is_empty() && notes.is_empty());
    assert!(files(&folder.0).unwrap().is_empty(), "nothing is left");
}

#[test]
fn leases_of_another_boot_and_damaged_ones_are_not_used() {
    let folder = Folder::new("boot");
    let (mut store, _) = Leases::open(&folder.0, "one").unwrap();
    let mut lease = store.blank(&Key { container: "c".into(), interface: "a.b/c".into() });
    lease.addresses = vec![[10, 1, 0, 2].into()];
    store.write(&lease).unwrap();
    lease = store.blank(&key(1));
    lease.addresses = vec![[10, 1, 0, 3].into()];
    store.write(&lease).unwrap();
    store.release(&key(1), Duration::from_secs(3)).unwrap();
    store.release(&key(2), Duration::from_secs(3)).unwrap();
    fs::write(folder.0.join("c9@eth0"), "{").unwrap();

    let (_, found) = Leases::open(&folder.0, "one").unwrap();
    assert_eq!(found.leases.len(), 1);
    assert_eq!(found.leases[0].interface, "a.b/c");
    assert_eq!(found.released, [(Duration::from_secs(3), vec![[10, 1, 0, 3].into()])]);
    assert_eq!(found.damaged.len(), 1);
    assert!(found.damaged[0].contains("c9@eth0: EOF"), "{:?}", found.damaged);
    assert!(folder.0.join("c9@eth0.damaged").exists());

    let (_, found) = Leases::open(&folder.0, "two").unwrap();
    assert!(found.leases.is_empty() && found.released.is_empty() && found.damaged.is_empty());
    assert!(!folder.0.join(file_name(&lease.key())).exists());
}
