//! Messages: header, sets, sequence numbers (RFC 7011 §3).

use std::time::{SystemTime, UNIX_EPOCH};

use super::template::Template;

/// Maximum length of a message in bytes: it fits an IPv6 path of 1,500 bytes with room for tunnels.
pub(super) const LONGEST: usize = 1400;
const HEADER: usize = 16;
const SET_HEADER: usize = 4;
/// The set of templates.
const TEMPLATE_SET: u16 = 2;

/// A message, and how many data records it has.
pub(super) type Message = (Vec<u8>, u64);

/// Builds messages.
pub(super) struct Messages {
    domain: u32,
    /// Number of data records in messages so far, modulo 2^32.
    sequence: u32,
    /// The waiting records of each template, and their number.
    waiting: [(Vec<u8>, u32); Template::ALL.len()],
}

impl Messages {
    pub(super) fn new(domain: u32) -> Self {
        Self { domain, sequence: 0, waiting: std::array::from_fn(|_| (Vec::new(), 0)) }
    }

    /// The message with all templates.
    pub(super) fn templates(&mut self, now: SystemTime) -> Vec<u8> {
        let records: Vec<u8> =
            Template::ALL.iter().flat_map(|template| template.record()).collect();
        self.message(TEMPLATE_SET, &records, 0, now)
    }

    /// Adds a record. If it does not fit into the current message, returns that message and starts
    /// another one.
    pub(super) fn add(
        &mut self,
        template: Template,
        record: &[u8],
        now: SystemTime,
    ) -> Option<Message> {
        let (bytes, _) = &self.waiting[template as usize];
        let is_full = HEADER + SET_HEADER + bytes.len() + record.len() > LONGEST;
        let message = if is_full { self.take(template, now) } else { None };
        let (bytes, count) = &mut self.waiting[template as usize];
        bytes.extend_from_slice(record);
        *count += 1;
        message
    }

    /// The message with the waiting records.
    pub(super) fn flush(&mut self, now: SystemTime) -> Vec<Message> {
        Template::ALL.iter().filter_map(|template| self.take(*template, now)).collect()
    }

    fn take(&mut self, template: Template, now: SystemTime) -> Option<Message> {
        let (bytes, count) = std::mem::take(&mut self.waiting[template as usize]);
        (count > 0).then(|| (self.message(template.id(), &bytes, count, now), count.into()))
    }

    /// A message of one set.
    fn message(&mut self, set: u16, content: &[u8], records: u32, now: SystemTime) -> Vec<u8> {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as u32;
        let mut bytes = Vec::with_capacity(HEADER + SET_HEADER + content.len());
        bytes.extend(10u16.to_be_bytes());
        bytes.extend(((HEADER + SET_HEADER + content.len()) as u16).to_be_bytes());
        bytes.extend(seconds.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.domain.to_be_bytes());
        bytes.extend(set.to_be_bytes());
        bytes.extend(((SET_HEADER + content.len()) as u16).to_be_bytes());
        bytes.extend_from_slice(content);
        self.sequence = self.sequence.wrapping_add(records);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_short_and_numbered() {
        let mut messages = Messages::new(7);
        let now = UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
        assert!(messages.templates(now).len() <= LONGEST);
        for template in Template::ALL {
            let record = vec![9; template.length()];
            let mut sent = 0;
            let before = messages.sequence;
            let mut check = |(message, count): Message| {
                assert!(message.len() <= LONGEST && count > 0);
                assert_eq!(message[..2], [0, 10]);
                assert_eq!(
                    usize::from(u16::from_be_bytes([message[2], message[3]])),
                    message.len()
                );
                assert_eq!(message[4..8], 1_700_000_000u32.to_be_bytes());
                assert_eq!(message[8..12], (before + sent).to_be_bytes());
                assert_eq!(message[12..16], [0, 0, 0, 7]);
                assert_eq!(message[16..18], template.id().to_be_bytes());
                assert_eq!(message.len() - 20, count as usize * template.length());
                sent += count as u32;
            };
            for _ in 0..100 {
                messages.add(template, &record, now).into_iter().for_each(&mut check);
            }
            messages.flush(now).into_iter().for_each(&mut check);
            assert_eq!(sent, 100);
        }
        assert!(messages.flush(now).is_empty());
    }
}
