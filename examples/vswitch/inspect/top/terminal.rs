//! `top` on a terminal: reads keys and draws screens, until a key or a signal ends it.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use podswitch_api::Client;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::app::{App, Key};
use super::sample::{Sample, Sampler};
use super::screen::draw;
use crate::Done;
use crate::failure::Failure;
use crate::signals::Signals;

/// The longest delay of a signal or a sample.
const PAUSE: Duration = Duration::from_millis(100);
/// Time between two attempts to reach a switch that does not respond.
const RETRY: Duration = Duration::from_secs(1);

/// Shows samples until `q`, Ctrl-C, or a signal. The terminal is always restored, even after a
/// panic.
pub(super) fn run(client: Client, interval: Duration) -> Done {
    let signals = Signals::listen()?;
    let samples = samples(client, interval)?;
    let mut app = App::default();
    let mut terminal = ratatui::try_init().map_err(|error| failed(&error))?;
    let shown = loop {
        if let Ok(result) = samples.try_recv() {
            app.take(result);
        }
        if let Err(error) = terminal.draw(|frame| draw(frame, &mut app)) {
            break Err(failed(&error));
        }
        if let Err(error) = keys(&mut app) {
            break Err(failed(&error));
        }
        // A terminal that is closed sends SIGHUP.
        if app.has_ended || signals.stopped() || signals.take_reload() {
            break Ok(());
        }
    };
    ratatui::restore();
    shown
}

fn failed(error: &std::io::Error) -> Failure {
    Failure::Setup(format!("the terminal: {error}"))
}

/// Samples as they arrive, from a thread that ends with the process.
fn samples(
    client: Client,
    interval: Duration,
) -> Result<Receiver<Result<Sample, String>>, Failure> {
    let (sender, receiver) = sync_channel(1);
    let follow = move || {
        let mut sampler = Sampler::new();
        loop {
            let result = sampler.fetch(&client, interval).map_err(|error| error.to_string());
            let has_failed = result.is_err();
            if sender.send(result).is_err() {
                return;
            }
            if has_failed {
                // The switch may have restarted, so its counters may start at 0 again.
                sampler = Sampler::new();
                thread::sleep(RETRY);
            }
        }
    };
    let started = thread::Builder::new().name("podswitch-top".into()).spawn(follow);
    started.map_err(|error| Failure::Setup(format!("cannot start a thread: {error}")))?;
    Ok(receiver)
}

/// Reads the keys that were pressed; waits briefly for the first.
fn keys(app: &mut App) -> std::io::Result<()> {
    // Do not use `event::poll`: on a closed terminal it never returns.
    let stdin = std::io::stdin();
    let mut ready = [PollFd::new(&stdin, PollFlags::IN)];
    let pause = Timespec { tv_sec: 0, tv_nsec: PAUSE.subsec_nanos().into() };
    match poll(&mut ready, Some(&pause)) {
        Ok(0) | Err(Errno::INTR) => return Ok(()),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    if ready[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
        app.has_ended = true;
        return Ok(());
    }
    while event::poll(Duration::ZERO)? {
        // A new size is detected when the screen is drawn.
        if let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
            && let Some(key) = known(key)
        {
            app.press(key);
        }
    }
    Ok(())
}

fn known(key: KeyEvent) -> Option<Key> {
    Some(match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Interrupt,
        KeyCode::Char(c) if !key.modifiers.contains(KeyModifiers::CONTROL) => Key::Char(c),
        KeyCode::Tab | KeyCode::Right => Key::Next,
        KeyCode::BackTab | KeyCode::Left => Key::Previous,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    })
}
