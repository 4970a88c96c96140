//! Replies of other servers, for as long as they may be kept.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use podswitch_core::time::Instant;

use super::message::Key;

/// Most replies, and their bytes.
const MAX_REPLIES: usize = 10_000;
const MAX_BYTES: usize = 16 << 20;

struct Kept {
    reply: Arc<[u8]>,
    since: Instant,
    until: Instant,
    /// Distinguishes it from what the key had before.
    number: u64,
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Cache {
    replies: HashMap<Key, Kept>,
    /// In the order of their arrival; some have been replaced.
    order: VecDeque<(Key, u64)>,
    bytes: usize,
    next: u64,
}

impl Cache {
    /// A reply and its age in seconds.
    pub(super) fn get(&self, now: Instant, key: &Key) -> Option<(Arc<[u8]>, u32)> {
        let kept = self.replies.get(key).filter(|kept| now < kept.until)?;
        Some((kept.reply.clone(), now.since(kept.since).as_secs() as u32))
    }

    /// Keeps a reply for so many seconds. The oldest ones give way.
    pub(super) fn keep(&mut self, now: Instant, key: Key, reply: &[u8], seconds: u32) {
        if seconds == 0 {
            return;
        }
        let number = self.next;
        self.next += 1;
        let until = now + Duration::from_secs(seconds.into());
        self.bytes += reply.len();
        let kept = Kept { reply: reply.into(), since: now, until, number };
        if let Some(old) = self.replies.insert(key.clone(), kept) {
            self.bytes -= old.reply.len();
        }
        self.order.push_back((key, number));
        // A reply that was replaced stays in the order; twice the replies bound it.
        while self.replies.len() > MAX_REPLIES
            || self.bytes > MAX_BYTES
            || self.order.len() > 2 * MAX_REPLIES
        {
            let Some((key, number)) = self.order.pop_front() else { break };
            if self.replies.get(&key).is_some_and(|kept| kept.number == number)
                && let Some(old) = self.replies.remove(&key)
            {
                self.bytes -= old.reply.len();
            }
        }
    }

    /// Number of replies.
    pub(super) fn len(&self) -> usize {
        self.replies.len()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }
}
