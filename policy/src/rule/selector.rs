//! Label selectors (meta/v1 LabelSelector), with the semantics of the API machinery.

use core::fmt;
use std::sync::Arc;

use super::Labels;

/// A label selector. All its requirements must hold; one without requirements selects everything
/// (N8: present but empty selects all). An absent selector is represented by `None`, never by an
/// empty selector (threat T-L2).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct Selector {
    /// `matchLabels`: each key must exist with this value.
    pub labels: Labels,
    /// `matchExpressions`.
    pub expressions: Vec<Requirement>,
}

/// One of a selector's `matchExpressions`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Requirement {
    /// The label's key.
    pub key: Arc<str>,
    /// The condition on it.
    pub operator: Operator,
}

/// The condition of a [`Requirement`].
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Operator {
    /// The label exists with one of these values.
    In(Vec<Arc<str>>),
    /// The label does not exist, or has none of these values (N8).
    NotIn(Vec<Arc<str>>),
    /// The label exists.
    Exists,
    /// The label does not exist.
    DoesNotExist,
}

impl Selector {
    /// The selector that selects everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// A selector of `matchLabels` alone.
    pub fn of_labels(labels: Labels) -> Self {
        Self { labels, expressions: Vec::new() }
    }

    /// Whether it has no requirement and therefore selects everything.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.expressions.is_empty()
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|e| e.matches(labels))
    }
}

impl Requirement {
    /// Whether the condition holds for these labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let among = |list: &[Arc<str>]| value.is_some_and(|v| list.iter().any(|x| **x == *v));
        match &self.operator {
            Operator::In(list) => among(list),
            Operator::NotIn(list) => !among(list),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl fmt::Display for Selector {
    /// In the form of `kubectl get -l`; `<all>` for the empty selector.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return f.write_str("<all>");
        }
        let mut comma = "";
        for (key, value) in self.labels.iter() {
            write!(f, "{comma}{key}={value}")?;
            comma = ",";
        }
        for requirement in &self.expressions {
            write!(f, "{comma}{requirement}")?;
            comma = ",";
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.operator {
            Operator::In(list) => write!(f, "{} in ({})", self.key, list.join(",")),
            Operator::NotIn(list) => write!(f, "{} notin ({})", self.key, list.join(",")),
            Operator::Exists => f.write_str(&self.key),
            Operator::DoesNotExist => write!(f, "!{}", self.key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        Labels::new(pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())))
    }

    fn expression(operator: Operator) -> Selector {
        let expressions = vec![Requirement { key: "tier".into(), operator }];
        Selector { labels: Labels::default(), expressions }
    }

    #[test]
    fn operators() {
        let (none, web, db) =
            (labels(&[]), labels(&[("tier", "web")]), labels(&[("tier", "db"), ("x", "")]));
        let table = [
            (Operator::In(vec!["web".into(), "app".into()]), [false, true, false]),
            (Operator::NotIn(vec!["web".into(), "app".into()]), [true, false, true]),
            (Operator::Exists, [false, true, true]),
            (Operator::DoesNotExist, [true, false, false]),
        ];
        for (operator, want) in table {
            let selector = expression(operator);
            let got = [&none, &web, &db].map(|l| selector.matches(l));
            assert_eq!(got, want, "{selector}");
        }
    }

    #[test]
    fn empty_selects_all_and_requirements_are_anded() {
        assert!(Selector::everything().matches(&labels(&[])));
        let mut selector = expression(Operator::Exists);
        selector.labels = labels(&[("x", "")]);
        assert!(selector.matches(&labels(&[("tier", "a"), ("x", "")])));
        assert!(!selector.matches(&labels(&[("tier", "a")])));
        assert!(!selector.matches(&labels(&[("x", "")])));
        assert_eq!(selector.to_string(), "x=,tier");
    }
}
