//! Label selectors as people type them (`kubectl get -l`): `app=web,tier!=db,env in (prod,test),!canary`.

use std::sync::Arc;

use podswitch_policy::rule::{Labels, Operator, Requirement, Selector};

use crate::validate::name::{label_value, qualified_name};

/// Reads a selector in kubectl's syntax: requirements separated by commas, all of which must hold. `KEY=VALUE` (or
/// `==`), `KEY!=VALUE`, `KEY in (A,B)`, `KEY notin (A,B)`, `KEY`, `!KEY`. As in Kubernetes, `!=` and `notin` also
/// select objects without the label.
///
/// # Errors
/// The requirement that is invalid, and why.
///
/// ```
/// use podswitch_kubernetes::label_query;
/// use podswitch_policy::rule::Labels;
///
/// let selector = label_query("app in (web, api), !canary").unwrap();
/// assert!(selector.matches(&[("app", "web")].into_iter().collect::<Labels>()));
/// assert!(!selector.matches(&[("app", "web"), ("canary", "")].into_iter().collect::<Labels>()));
/// assert!(label_query("app=web!").unwrap_err().contains("app=web!"));
/// ```
pub fn label_query(text: &str) -> Result<Selector, String> {
    let mut expressions = Vec::new();
    for part in split(text)? {
        let requirement = requirement(part.trim());
        expressions.push(requirement.map_err(|reason| format!("label selector {part}: {reason}"))?);
    }
    Ok(Selector { labels: Labels::default(), expressions })
}

/// Splits a selector into requirements. Commas within parentheses separate values.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut start, mut is_inside) = (Vec::new(), 0, false);
    for (at, character) in text.char_indices() {
        match character {
            '(' if !is_inside => is_inside = true,
            ')' if is_inside => is_inside = false,
            '(' | ')' => {
                return Err(format!("label selector {text}: a parenthesis is not opened"));
            }
            ',' if !is_inside => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    match is_inside {
        true => Err(format!("label selector {text}: a parenthesis is not closed")),
        false => {
            parts.push(&text[start..]);
            Ok(parts)
        }
    }
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let (key, operator) = if let Some((key, value)) = text.split_once("!=") {
        (key, Operator::NotIn(values(value)?))
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (key, Operator::In(values(value)?))
    } else if let Some(list) = text.strip_suffix(')') {
        let wrong = || "it is not KEY in (A,B) or KEY notin (A,B)".to_owned();
        let (head, list) = list.split_once('(').ok_or_else(wrong)?;
        let mut words = head.split_whitespace();
        let (key, word) = words.next().zip(words.next()).ok_or_else(wrong)?;
        let list = list.split(',').map(value).collect::<Result<Vec<_>, _>>()?;
        match (word, words.next()) {
            ("in", None) => (key, Operator::In(list)),
            ("notin", None) => (key, Operator::NotIn(list)),
            _ => return Err(wrong()),
        }
    } else if let Some(key) = text.strip_prefix('!') {
        (key, Operator::DoesNotExist)
    } else {
        (text, Operator::Exists)
    };
    let key = key.trim();
    qualified_name(key)?;
    Ok(Requirement { key: key.into(), operator })
}

fn values(text: &str) -> Result<Vec<Arc<str>>, String> {
    value(text).map(|value| vec![value])
}

fn value(text: &str) -> Result<Arc<str>, String> {
    let text = text.trim();
    label_value(text)?;
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| (Arc::from(*key), Arc::from(*value))).collect()
    }

    #[test]
    fn every_form_selects_as_in_kubernetes() {
        let (web, plain) = (labels(&[("app", "web"), ("example.com/tier", "front")]), labels(&[]));
        for (text, takes_web, takes_plain) in [
            ("app=web", true, false),
            ("app==web", true, false),
            (" app = web ", true, false),
            ("app=api", false, false),
            ("app=", false, false),
            ("app!=web", false, true),
            ("app!=api", true, true),
            ("app", true, false),
            ("!app", false, true),
            ("app in (web,api)", true, false),
            ("app notin (web, api)", false, true),
            ("app in (api)", false, false),
            ("app=web,example.com/tier=front", true, false),
            ("app in (web,api),example.com/tier!=front", false, false),
        ] {
            let selector = label_query(text).expect(text);
            assert_eq!(
                (selector.matches(&web), selector.matches(&plain)),
                (takes_web, takes_plain),
                "{text}"
            );
        }
    }

    #[test]
    fn errors_name_the_requirement() {
        for (text, says) in [
            ("", "label selector : "),
            ("app=web,", "label selector : "),
            ("app in (web", "is not closed"),
            ("app in web)", "is not opened"),
            ("app on (web)", "it is not KEY in (A,B)"),
            ("(web)", "it is not KEY in (A,B)"),
            ("app=we b", "label selector app=we b: "),
            ("-app=web", "label selector -app=web: "),
            ("app=ok,tier!=@", "label selector tier!=@: "),
        ] {
            let error = label_query(text).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
