//! Label selectors: validation and conversion to the model.

use std::sync::Arc;

use podswitch_policy::rule::{Operator, Requirement, Selector};

use super::names::Names;
use crate::api::meta::LabelSelector;
use crate::report::{Field, Findings};
use crate::validate::meta::label_selector;

/// The selector in the model's form. Errors are added to `faults`; in that case neither the object
/// nor the result may be used.
pub(super) fn selector(
    names: &mut Names,
    selector: &LabelSelector,
    field: &Field<'_>,
    faults: &mut Findings,
) -> Selector {
    label_selector(selector, field, faults);
    let labels = names.texts(selector.match_labels.as_ref());
    let mut expressions = Vec::new();
    for requirement in selector.match_expressions.iter().flatten() {
        let values = requirement.values.iter().flatten();
        let values: Vec<Arc<str>> = values.map(|value| names.get(value)).collect();
        let operator = match requirement.operator.as_deref() {
            Some("In") => Operator::In(values),
            Some("NotIn") => Operator::NotIn(values),
            Some("Exists") => Operator::Exists,
            Some("DoesNotExist") => Operator::DoesNotExist,
            _ => continue,
        };
        let key = names.get(requirement.key.as_deref().unwrap_or_default());
        expressions.push(Requirement { key, operator });
    }
    Selector { labels, expressions }
}
