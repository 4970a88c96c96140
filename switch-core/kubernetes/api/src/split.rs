//! Splits a list into its items while it arrives, so that a list of 150,000 pods is never in memory
//! at once. (An API server's cache ignores the page limit.)

/// Largest item, in bytes. The limit of etcd is 1.5 MiB.
const MAX_ITEM: usize = 8 << 20;
/// Largest remainder of a list, in bytes: its kind and metadata.
const MAX_REST: usize = 1 << 20;
/// Deepest nesting.
const MAX_DEPTH: usize = 128;

/// The text is not a list or exceeds a limit, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a list: {0}")]
pub(crate) struct SplitError(&'static str);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Outside of `items`.
    Rest,
    /// Between two items.
    Between,
    /// In an item.
    Item,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct ListSplitter {
    place: Place,
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The last string at the list's top level, until anything but a colon follows.
    key: Vec<u8>,
    has_key: bool,
    item: Vec<u8>,
    rest: Vec<u8>,
}

impl ListSplitter {
    pub(crate) fn new() -> Self {
        Self {
            place: Place::Rest,
            depth: 0,
            in_string: false,
            escaped: false,
            key: Vec::new(),
            has_key: false,
            item: Vec::new(),
            rest: Vec::new(),
        }
    }

    /// Processes the next bytes. Calls `each` with every item that ends in them.
    ///
    /// # Errors
    /// An item is not an object, or a limit is exceeded.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        each: &mut impl FnMut(&[u8]),
    ) -> Result<(), SplitError> {
        while let Some(&byte) = bytes.first() {
            if self.in_string && !self.escaped {
                // Most bytes are inside strings: skip at once as far as nothing changes.
                let end =
                    bytes.iter().position(|b| matches!(b, b'"' | b'\\')).unwrap_or(bytes.len());
                if end > 0 {
                    self.keep(&bytes[..end])?;
                    bytes = &bytes[end..];
                    continue;
                }
            }
            self.byte(byte, each)?;
            bytes = &bytes[1..];
        }
        Ok(())
    }

    /// The list without its items. Call it after the last byte.
    pub(crate) fn finish(self) -> Result<Vec<u8>, SplitError> {
        let has_ended = self.place == Place::Rest && self.depth == 0 && !self.in_string;
        if has_ended && !self.rest.is_empty() {
            Ok(self.rest)
        } else {
            Err(SplitError("it is truncated"))
        }
    }

    fn byte(&mut self, byte: u8, each: &mut impl FnMut(&[u8])) -> Result<(), SplitError> {
        if self.in_string {
            self.keep(&[byte])?;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Ok(());
        }
        match (self.place, byte) {
            (Place::Between, b',' | b' ' | b'\n' | b'\r' | b'\t') => return Ok(()),
            (Place::Between, b']') => {
                self.place = Place::Rest;
                self.depth -= 1;
                return self.keep(b"]");
            }
            (Place::Between, b'{') => self.place = Place::Item,
            (Place::Between, _) => return Err(SplitError("an item is not an object")),
            _ => {}
        }
        self.keep(&[byte])?;
        match byte {
            b'"' => {
                self.in_string = true;
                if self.place == Place::Rest && self.depth == 1 {
                    self.key.clear();
                    self.has_key = true;
                }
                return Ok(());
            }
            b'{' | b'[' => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(SplitError("nesting is too deep"));
                }
                let is_items = self.has_key && self.key == b"items\"" && self.depth == 2;
                if self.place == Place::Rest && byte == b'[' && is_items {
                    self.place = Place::Between;
                }
            }
            b'}' | b']' => {
                self.depth = self.depth.checked_sub(1).ok_or(SplitError("unbalanced brackets"))?;
                if self.place == Place::Item && self.depth == 2 {
                    each(&self.item);
                    self.item.clear();
                    self.place = Place::Between;
                }
            }
            b':' | b' ' | b'\n' | b'\r' | b'\t' => return Ok(()),
            _ => {}
        }
        self.has_key = false;
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), SplitError> {
        let (to, most) = match self.place {
            Place::Item => (&mut self.item, MAX_ITEM),
            _ => (&mut self.rest, MAX_REST),
        };
        if to.len() + bytes.len() > most {
            return Err(SplitError("too large"));
        }
        to.extend_from_slice(bytes);
        if self.in_string && self.has_key && self.place == Place::Rest {
            self.key.extend_from_slice(bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str, chunk: usize) -> Result<(Vec<String>, String), SplitError> {
        let (mut splitter, mut items) = (ListSplitter::new(), Vec::new());
        for bytes in text.as_bytes().chunks(chunk) {
            splitter
                .feed(bytes, &mut |item| items.push(String::from_utf8(item.to_vec()).unwrap()))?;
        }
        Ok((items, String::from_utf8(splitter.finish()?).unwrap()))
    }

    #[test]
    fn items_are_found_wherever_the_text_is_split() {
        let text = r#"{"kind":"PodList","metadata":{"items":[1],"note":"items","resourceVersion":"7"},
            "items" : [ {"a":"}]\"{\\","items":[{"b":[]}]} , {"é":{}} ], "more":[{"items":[]}]}"#;
        for chunk in 1..text.len() {
            let (items, rest) = split(text, chunk).unwrap();
            assert_eq!(items, [r#"{"a":"}]\"{\\","items":[{"b":[]}]}"#, r#"{"é":{}}"#]);
            let rest: serde_json::Value = serde_json::from_str(&rest).unwrap();
            assert_eq!(rest["metadata"]["resourceVersion"], "7");
            assert_eq!(rest["items"], serde_json::json!([]));
            assert_eq!(rest["more"][0]["items"], serde_json::json!([]));
        }
    }

    #[test]
    fn lists_without_items_and_invalid_lists() {
        assert_eq!(split(r#"{"items":[]}"#, 3).unwrap().0.len(), 0);
        assert_eq!(split(r#"{"items":null,"metadata":{}}"#, 3).unwrap().0.len(), 0);
        assert_eq!(split(r#"{"a":"items","b":[{}]}"#, 3).unwrap().0.len(), 0, "a value");
        for bad in ["", r#"{"items":[{}"#, r#"{"items":[1]}"#, r#"{"items":[{}]"#, "]", r#"{"a"#] {
            assert!(split(bad, 2).is_err(), "{bad}");
        }
        assert!(split(&"[".repeat(1000), 100).is_err());
        let long = format!(r#"{{"items":[{{"a":"{}"}}]}}"#, "x".repeat(MAX_ITEM));
        assert!(split(&long, 4096).is_err());
    }
}
