//! A thread that serves connections.

use std::io;
use std::thread::JoinHandle;

use podswitch_linux::confine::worker_thread;
use tokio::sync::oneshot;

/// Runs a task on a thread of its own until it is dropped.
pub(crate) struct Background {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts the thread `name`, which runs what `task` gives and what that spawns.
    ///
    /// # Errors
    /// The system refuses the thread.
    pub(crate) fn start<F: Future<Output = ()> + Send + 'static>(
        name: &'static str,
        task: F,
    ) -> io::Result<Self> {
        // One thread answers; a few more wait for the node's.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4)
            .thread_name(name)
            .on_thread_start(worker_thread)
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            // The node's thread does what takes privilege.
            worker_thread();
            runtime.spawn(task);
            // The sender's end is its drop.
            let _ = runtime.block_on(stopped);
            // A question that the node has not answered yet is nobody's to wait for.
            runtime.shutdown_background();
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It panicked: there is nothing left to end.
            let _ = thread.join();
        }
    }
}
