//! A short byte string that is where it is used: labels and keys, of which nearly all have up to 22 bytes.

use std::ops::Deref;
use std::sync::Arc;

/// Bytes that fit.
const ROOM: usize = 22;

/// See the module's description. Longer ones are shared. Equal and ordered as the bytes are.
#[derive(Clone, Debug)]
pub(crate) enum Bytes {
    Here { len: u8, bytes: [u8; ROOM] },
    There(Arc<[u8]>),
}

const _: () = assert!(size_of::<Bytes>() == 24);

impl From<&[u8]> for Bytes {
    fn from(from: &[u8]) -> Self {
        if from.len() > ROOM {
            return Self::There(from.into());
        }
        let mut bytes = [0; ROOM];
        bytes[..from.len()].copy_from_slice(from);
        Self::Here { len: from.len() as u8, bytes }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(from: Vec<u8>) -> Self {
        Self::from(&*from)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Here { len, bytes } => &bytes[..usize::from(*len)],
            Self::There(bytes) => bytes,
        }
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Bytes {}

impl PartialOrd for Bytes {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Bytes {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_kept() {
        for len in [0, 1, 21, 22, 23, 255] {
            let bytes = vec![7; len];
            assert_eq!(*Bytes::from(bytes.clone()), bytes);
        }
        assert!(Bytes::from(&b"a"[..]) < Bytes::from(vec![b'a'; 30]));
    }
}
