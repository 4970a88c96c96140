//! The API server as the source of objects: lists and watches on a thread of their own. The status
//! of what is served is written by one replica, the holder of a Lease.

mod follow;
mod gateway_status;
mod lease;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use podswitch_ingress::{Compiled, Objects, Options, compile};
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::time::Instant;

use follow::{Change, KINDS};
pub(crate) use status::Publish;
use status::Served;

/// Changes that come in this time are compiled together.
const COALESCE: Duration = Duration::from_millis(30);

/// The objects of an API server.
pub(crate) struct Api {
    changes: Receiver<Change>,
    objects: Objects,
    options: Options,
    listed: BTreeSet<&'static str>,
    /// By what failed: what works again does not hide what else fails.
    errors: BTreeMap<&'static str, String>,
    served: watch::Sender<Served>,
}

impl Api {
    /// Starts to follow the server of a kubeconfig, or of the pod's environment. `publish`: what
    /// the status of Ingresses is to name.
    pub(crate) fn open(
        kubeconfig: Option<&Path>,
        options: Options,
        publish: Option<Publish>,
    ) -> Result<Self, Box<dyn Error>> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(client(kubeconfig))?;
        let (send, changes) = channel();
        let (served, seen) = watch::channel(Served::default());
        thread::Builder::new().name("kubernetes".to_owned()).spawn(move || {
            runtime.block_on(async {
                for kind in &KINDS {
                    tokio::spawn(follow::run(client.clone(), kind, send.clone()));
                }
                match publish {
                    Some(publish) => status::run(client, publish, seen, send).await,
                    None => std::future::pending().await,
                }
            });
        })?;
        Ok(Self::new(changes, options, served))
    }

    fn new(changes: Receiver<Change>, options: Options, served: watch::Sender<Served>) -> Self {
        let (objects, listed, errors) = Default::default();
        Self { changes, objects, options, listed, errors, served }
    }

    /// Waits for changes, at most for `longest`; returns the routes if anything changed. Until
    /// every kind has been listed, there are none.
    pub(crate) fn load(&mut self, longest: Duration) -> Option<Compiled> {
        // Changes that never pause must not keep routes from being published.
        let end = Instant::now() + longest + COALESCE;
        let (mut wait, mut is_changed) = (longest, false);
        loop {
            match self.changes.recv_timeout(wait) {
                Ok(change) => {
                    is_changed |= self.apply(change);
                    wait = COALESCE.min(end.saturating_duration_since(Instant::now()));
                    if wait.is_zero() {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    thread::sleep(longest);
                    break;
                }
            }
        }
        if !is_changed || self.listed.len() < KINDS.len() {
            return None;
        }
        let compiled = compile(&self.objects, &self.options);
        let now = Served::new(&compiled);
        self.served.send_if_modified(|served| {
            let is_new = *served != now;
            *served = now;
            is_new
        });
        Some(compiled)
    }

    /// Why objects may be old.
    pub(crate) fn errors(&self) -> Vec<String> {
        self.errors.iter().map(|(what, reason)| format!("{what}: {reason}")).collect()
    }

    /// Returns whether an object may have changed.
    fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Listed(kind, values) => {
                self.objects.replace(kind, values);
                self.listed.insert(kind);
                self.errors.remove(kind);
            }
            Change::Upsert(value) => _ = self.objects.upsert(None, value),
            Change::Delete(value) => self.objects.delete(&value),
            Change::Works(what) => {
                self.errors.remove(what);
                return false;
            }
            Change::Failed(what, reason) => {
                self.errors.insert(what, reason);
                return false;
            }
        }
        true
    }
}

async fn client(kubeconfig: Option<&Path>) -> Result<Client, Box<dyn Error>> {
    let config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?
        }
        None => Config::incluster().map_err(|error| {
            format!("no --kubeconfig is given and this process is not in a pod: {error}")
        })?,
    };
    Ok(Client::try_from(config)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_kept_by_source_and_compile_nothing() {
        let (send, changes) = channel();
        let (served, _seen) = watch::channel(Served::default());
        let mut api = Api::new(changes, Options::default(), served);
        let mut load = |new: Vec<Change>| {
            for change in new {
                send.send(change).expect("received");
            }
            let is_compiled = api.load(Duration::ZERO).is_some();
            (is_compiled, api.errors())
        };
        let failed = |what| Change::Failed(what, "status 403: no".to_owned());
        let text = |what: &str| format!("{what}: status 403: no");
        let all = KINDS.iter().map(|kind| Change::Listed(kind.name, Vec::new())).collect();
        assert_eq!(load(all), (true, vec![]));
        let two = vec![text("Secret"), text("Service")];
        assert_eq!(load(vec![failed("Secret"), failed("Service")]), (false, two.clone()));
        // Of another source, or with objects.
        assert_eq!(load(vec![Change::Works("Ingress")]), (false, two.clone()));
        assert_eq!(load(vec![Change::Listed("Ingress", Vec::new())]), (true, two));
        assert_eq!(load(vec![Change::Works("Secret")]), (false, vec![text("Service")]));
        assert_eq!(load(vec![Change::Listed("Service", Vec::new())]), (true, vec![]));
    }
}
