//! Documents with parts that programs write.

/// The text with another part between two marks, on lines of its own; `None`: the marks are missing, or in the other
/// order.
pub fn replace_between(text: &str, marks: [&str; 2], part: &str) -> Option<String> {
    let [begin, end] = marks;
    let (before, rest) = text.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}\n{part}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::replace_between;

    const MARKS: [&str; 2] = ["<!-- a -->", "<!-- b -->"];

    #[test]
    fn only_the_marked_part_changes() {
        let new = replace_between("x\n<!-- a -->\nold\n<!-- b -->\ny\n", MARKS, "new\n").unwrap();
        assert_eq!(new, "x\n<!-- a -->\nnew\n<!-- b -->\ny\n");
        assert_eq!(replace_between(&new, MARKS, "new\n").as_deref(), Some(new.as_str()));
    }

    #[test]
    fn a_document_without_marks_is_refused() {
        assert_eq!(replace_between("<!-- b --> x <!-- a -->", MARKS, "new"), None);
        assert_eq!(replace_between("", MARKS, "new"), None);
    }
}
