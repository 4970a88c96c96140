//! Where objects come from: manifests, or the API server.

use std::error::Error;
use std::thread::sleep;
use std::time::Duration;

use podswitch_ingress::{Compiled, Objects, Options, compile};
use podswitch_kubernetes::Values;

use crate::flags::Flags;

/// A source of objects.
pub(crate) enum Source {
    /// Manifests.
    Files(Values, Box<Options>),
    /// The API server.
    #[cfg(feature = "kubernetes")]
    Api(Box<crate::api::Api>),
}

impl Source {
    /// The source that the flags name.
    pub(crate) fn open(flags: &Flags) -> Result<Self, Box<dyn Error>> {
        match &flags.manifests {
            Some(path) => Ok(Self::Files(Values::new(path), Box::new(flags.options()))),
            None => Self::api(flags),
        }
    }

    #[cfg(feature = "kubernetes")]
    fn api(flags: &Flags) -> Result<Self, Box<dyn Error>> {
        let kubeconfig = flags.kubeconfig.as_deref();
        let api = crate::api::Api::open(kubeconfig, flags.options(), flags.publish())?;
        Ok(Self::Api(Box::new(api)))
    }

    #[cfg(not(feature = "kubernetes"))]
    fn api(_: &Flags) -> Result<Self, Box<dyn Error>> {
        Err("--kubernetes needs a build with --features kubernetes".into())
    }

    /// Waits for `pause` at most, and returns the routes if objects changed since the last call.
    pub(crate) fn load(&mut self, pause: Duration) -> Result<Option<Compiled>, Box<dyn Error>> {
        match self {
            Self::Files(values, options) => {
                sleep(pause);
                if !values.load()? {
                    return Ok(None);
                }
                let mut compiled = compile(&Objects::from_values(values.objects()), options);
                compiled.records.extend(values.records().cloned());
                Ok(Some(compiled))
            }
            #[cfg(feature = "kubernetes")]
            Self::Api(api) => Ok(api.load(pause)),
        }
    }

    /// Whether a start may go on without objects.
    pub(crate) fn is_complete_at_once(&self) -> bool {
        matches!(self, Self::Files(..))
    }

    /// Why objects may be old: files that cannot be read, an API server that does not respond.
    pub(crate) fn errors(&self) -> Vec<String> {
        match self {
            Self::Files(values, _) => values.errors().to_vec(),
            #[cfg(feature = "kubernetes")]
            Self::Api(api) => api.errors(),
        }
    }
}
