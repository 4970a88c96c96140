//! Facts about this node's pods, shared by a source that provides them and the agent that queries
//! them: the common part of implementations of [`ClusterView`](super::ClusterView).

use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

use hashbrown::HashMap;

use super::cluster_view::{PodFacts, PodListener, ViewError};
use crate::pod_name::PodName;

/// See the module's description. Empty at first.
#[derive(Default)]
pub struct PodDirectory {
    pods: Mutex<HashMap<PodName, PodFacts>>,
    changed: Condvar,
    listener: Mutex<Option<PodListener>>,
}

impl fmt::Debug for PodDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodDirectory").field("pods", &lock(&self.pods)).finish_non_exhaustive()
    }
}

impl PodDirectory {
    /// Upserts a pod. Returns whether its facts changed.
    pub fn upsert(&self, pod: PodName, facts: PodFacts) -> bool {
        let mut pods = lock(&self.pods);
        if pods.get(&pod) == Some(&facts) {
            return false;
        }
        pods.insert(pod.clone(), facts);
        drop(pods);
        self.notify(&[pod]);
        true
    }

    /// Removes a pod. Returns whether it existed.
    pub fn delete(&self, pod: &PodName) -> bool {
        let was_there = lock(&self.pods).remove(pod).is_some();
        if was_there {
            self.notify(std::slice::from_ref(pod));
        }
        was_there
    }

    /// Replaces all facts, as after a new list.
    pub fn replace(&self, all: HashMap<PodName, PodFacts>) {
        let mut pods = lock(&self.pods);
        let is_other = |pod: &PodName| pods.get(pod) != all.get(pod);
        let mut changed: Vec<PodName> = all.keys().filter(|pod| is_other(pod)).cloned().collect();
        changed.extend(pods.keys().filter(|pod| !all.contains_key(*pod)).cloned());
        *pods = all;
        drop(pods);
        self.notify(&changed);
    }

    /// Facts about a pod.
    pub fn get(&self, pod: &PodName) -> Option<PodFacts> {
        lock(&self.pods).get(pod).cloned()
    }

    /// Waits until `deadline` for a pod of that name and UID.
    ///
    /// # Errors
    /// [`ViewError::Unknown`] or [`ViewError::OtherUid`].
    pub fn wait(
        &self,
        pod: &PodName,
        uid: Option<&str>,
        deadline: Instant,
    ) -> Result<PodFacts, ViewError> {
        let mut pods = lock(&self.pods);
        loop {
            let error = match pods.get(pod) {
                Some(facts) if facts.is(uid) => return Ok(facts.clone()),
                Some(facts) => ViewError::OtherUid(facts.uid.clone().unwrap_or_default()),
                None => ViewError::Unknown,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(error);
            }
            pods = match self.changed.wait_timeout(pods, left) {
                Ok((pods, _)) => pods,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Registers a listener that is called with each changed pod from now on.
    pub fn on_change(&self, listener: PodListener) {
        *lock(&self.listener) = Some(listener);
    }

    fn notify(&self, changed: &[PodName]) {
        if changed.is_empty() {
            return;
        }
        self.changed.notify_all();
        if let Some(listener) = &*lock(&self.listener) {
            changed.iter().for_each(listener);
        }
    }
}

/// The data behind these locks is consistent after each step, so a panic of another thread does no
/// harm.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn facts(uid: &str, app: &str) -> PodFacts {
        PodFacts::new(Some(uid.into()), [("app", app)].into_iter().collect())
    }

    #[test]
    fn waiting_for_a_pod_and_notifying_each_change_once() {
        let directory = Arc::new(PodDirectory::default());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let listener = heard.clone();
        directory.on_change(Box::new(move |pod| lock(&listener).push(pod.to_string())));
        let pod = PodName::new("a", "x").unwrap();
        let now = Instant::now();
        assert_eq!(directory.wait(&pod, None, now), Err(ViewError::Unknown));
        assert!(directory.upsert(pod.clone(), facts("1", "web")));
        assert!(!directory.upsert(pod.clone(), facts("1", "web")), "no change");
        assert_eq!(directory.wait(&pod, Some("2"), now), Err(ViewError::OtherUid("1".into())));

        let waiting = {
            let (directory, pod) = (directory.clone(), pod.clone());
            let deadline = Instant::now() + Duration::from_secs(60);
            std::thread::spawn(move || directory.wait(&pod, Some("2"), deadline))
        };
        directory.replace([(pod.clone(), facts("2", "db"))].into_iter().collect());
        assert_eq!(waiting.join().unwrap(), Ok(facts("2", "db")));
        assert!(directory.delete(&pod) && !directory.delete(&pod));
        directory.replace(HashMap::new());
        assert_eq!(*lock(&heard), ["a/x"; 3]);
    }
}
