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
    /// Starts the thread `name`, which runs the future that `task` returns, and the tasks that this
    /// spawns.
    ///
    /// # Errors
    /// The system refuses the thread.
    pub(crate) fn start<F: Future<Output = ()> + Send + 'static>(
        name: &'static str,
        task: F,
    ) -> io::Result<Self> {
        // One thread serves connections; a few more wait for the node's thread.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4)
            .thread_name(name)
            .on_thread_start(worker_thread)
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            // Drops this thread's privileges: operations that need them run on the node's thread.
            worker_thread();
            runtime.spawn(task);
            // Dropping the sender ends the task.
            let _ = runtime.block_on(stopped);
            // Nobody waits for a query that the node has not answered yet.
            runtime.shutdown_background();
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // The thread has panicked: there is nothing to end.
            let _ = thread.join();
        }
    }
}
