//! Edit distance of a misspelled name from a known one.

/// The known name nearest to `text`, if it is at most `most` edits away and not equal.
pub fn nearest<'a>(text: &str, names: &[&'a str], most: usize) -> Option<&'a str> {
    let near = names.iter().map(|name| (distance(text, name), *name));
    near.filter(|(distance, _)| (1..=most).contains(distance)).min().map(|(_, name)| name)
}

/// Levenshtein distance of ASCII characters; compares at most a hundred bytes of each.
pub fn distance(one: &str, other: &str) -> usize {
    let (one, other) =
        (&one.as_bytes()[..one.len().min(100)], &other.as_bytes()[..other.len().min(100)]);
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, a) in one.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (column, b) in other.iter().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
        let names = ["podswitch.io/netns", "podswitch.io/port"];
        assert_eq!(nearest("podswitch.io/netsn", &names, 2), Some(names[0]));
        assert_eq!(nearest(names[0], &names[..1], 2), None);
    }
}
