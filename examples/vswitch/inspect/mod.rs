//! Commands that query a running switch through its control socket: `status`, `pods`, `flows`,
//! `drops`, `trace`, `counters`, `policies`, `services`, `perf`, `capture`, `log-level`, `top`,
//! `bugreport`.

mod ask;
mod bugreport;
mod capture;
mod drops;
mod flows;
mod log_level;
mod moment;
mod objects;
mod perf;
mod status;
mod table;
mod top;
mod trace;

pub(crate) use ask::{SOCKET, Target};
pub(crate) use bugreport::Args as BugreportArgs;
pub(crate) use capture::Args as CaptureArgs;
pub(crate) use drops::Args as DropsArgs;
pub(crate) use flows::Args as FlowsArgs;
pub(crate) use log_level::Args as LogLevelArgs;
pub(crate) use objects::{Args as ObjectsArgs, PolicyArgs, ServiceArgs};
pub(crate) use perf::Args as PerfArgs;
pub(crate) use status::Args as StatusArgs;
pub(crate) use top::Args as TopArgs;
pub(crate) use trace::Args as TraceArgs;

pub(crate) use bugreport::run as bugreport;
pub(crate) use capture::run as capture;
pub(crate) use drops::run as drops;
pub(crate) use flows::run as flows;
pub(crate) use log_level::run as log_level;
pub(crate) use objects::{counters, pods, policies, services};
pub(crate) use perf::run as perf;
pub(crate) use status::status;
pub(crate) use top::run as top;
pub(crate) use trace::run as trace;
