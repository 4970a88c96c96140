use super::{SyntaxError, ends_open, split};
use serde_json::{Value, json};

/// A part with its value.
struct Document {
    index: usize,
    line: usize,
    value: Value,
}

/// All parts that are not empty.
fn parse(text: &str, json: bool) -> Result<Vec<Document>, SyntaxError> {
    let mut documents = Vec::new();
    for part in split(text, json)? {
        let value = part.parse(text)?;
        if !value.is_null() {
            documents.push(Document { index: part.document, line: part.line, value });
        }
    }
    Ok(documents)
}

#[test]
fn json_lists_are_split() {
    let list = |items: &str| format!(r#"{{"kind":"PodList","items":[{items}],"apiVersion":"v1"}}"#);
    let text = format!("{{\"a\":1}}\n{}", list("{\"x\":1},\n{\"y\":2}"));
    let parts = split(&text, true).unwrap();
    let found: Vec<_> = parts.iter().map(|p| (p.document, p.line, p.text)).collect();
    assert_eq!(found, [(0, 1, "{\"a\":1}"), (1, 2, "{\"x\":1}"), (1, 2, "{\"y\":2}")]);
    assert_eq!(parts[0].list, None);
    let list_of = parts[1].list.as_deref().unwrap();
    assert_eq!((&*list_of.0, &*list_of.1), ("v1", "PodList"));
    // An error in an item names the line in the file.
    let error = parse(&format!("\n{}", list("{},\n{\"y\":2,\"y\":3}")), true).err().unwrap();
    assert_eq!(error.line, Some(3), "{error:?}");
    // Any other value with items is one document.
    assert_eq!(split(r#"{"kind":"Menu","items":[1,2]}"#, true).unwrap().len(), 1);
    assert!(split(&list("{")[..20], true).is_err());
    assert!(split(r#"{"kind":"List","kind":"List","items":[]}"#, true).is_err());
}

#[test]
fn texts_that_end_where_a_document_begins() {
    for text in ["a: 1\n---", "a: 1\n---\n", "---\n", "a: 1\n--- \r\n\n"] {
        assert!(ends_open(text), "{text:?}");
    }
    for text in ["", "a: 1\n", "---\na: 1\n", "a: 1\n---\n...\n", "a: ---\n", "a: 1\n--- {b: 1}"] {
        assert!(!ends_open(text), "{text:?}");
    }
}

fn values(text: &str) -> Vec<Value> {
    parse(text, false).unwrap().into_iter().map(|d| d.value).collect()
}

#[test]
fn documents_are_separated_and_located() {
    let text = "# head\n%YAML 1.2\n---\na: 1\n---\n# nothing\n---\nb: |\n  x\n  ---\n--- {c: 2}\n...\nd: 4\n";
    let documents = parse(text, false).unwrap();
    let places: Vec<_> = documents.iter().map(|d| (d.index, d.line)).collect();
    assert_eq!(places, [(0, 1), (2, 7), (3, 11), (4, 13)]);
    let values: Vec<_> = documents.into_iter().map(|d| d.value).collect();
    assert_eq!(
        values,
        [json!({"a": 1}), json!({"b": "x\n---\n"}), json!({"c": 2}), json!({"d": 4})]
    );
}

#[test]
fn empty_texts_contain_nothing() {
    for text in ["", "\n", "---\n", "---\n---\n", "# only\n", "null\n", "\u{feff}", "...\n"] {
        assert_eq!(values(text), Vec::<Value>::new(), "{text:?}");
    }
}

#[test]
fn carriage_returns_and_byte_order_marks_are_ignored() {
    assert_eq!(values("\u{feff}a: 1\r\n---\r\nb: 2\r\n"), [json!({"a": 1}), json!({"b": 2})]);
}

#[test]
fn json_is_read_alone_in_sequence_and_as_flow_yaml() {
    assert_eq!(
        values(r#"{"a": "\ud83d\ude00\/"} {"b": [1, 2.5, null, true]}"#),
        [json!({"a": "😀/"}), json!({"b": [1, 2.5, null, true]}),]
    );
    assert_eq!(
        values("{a: 1, b: [x, y]}\n---\n{c: d}\n"),
        [json!({"a": 1, "b": ["x", "y"]}), json!({"c": "d"}),]
    );
    assert!(parse("{a: 1}", true).is_err());
}

#[test]
fn plain_scalars_have_kubectls_meaning() {
    let text = "{ns: y, other: n, t: true, f: False, i: 80, s: '80', hex: 0x10, d: 1.5, z: ~, e: }";
    assert_eq!(
        values(text),
        [json!({
            "ns": "y", "other": "n", "t": true, "f": false, "i": 80, "s": "80", "hex": 16, "d": 1.5,
            "z": null, "e": null,
        })]
    );
    assert_eq!(
        values("time: 2026-01-02T03:04:05Z\n1: a\ntrue: b\nv: 1.2.3\n"),
        [json!({"time": "2026-01-02T03:04:05Z", "1": "a", "true": "b", "v": "1.2.3"})]
    );
}

#[test]
fn anchors_and_merges_are_expanded() {
    let text = "base: &b {x: 1}\none: *b\ntwo:\n  <<: *b\n  y: 2\n";
    assert_eq!(values(text), [json!({"base": {"x": 1}, "one": {"x": 1}, "two": {"x": 1, "y": 2}})]);
    // As generators write it: one anchor, many references.
    let mut text = String::from("items:\n- &id001 {app: web}\n");
    text.push_str(&"- *id001\n".repeat(5_000));
    assert_eq!(values(&text)[0]["items"].as_array().unwrap().len(), 5_001);
}

#[test]
fn duplicate_keys_are_refused() {
    for (text, json) in [("a: 1\nb: 2\na: 3\n", false), (r#"{"a": 1, "a": 2}"#, true)] {
        let error = parse(text, json).err().unwrap();
        assert!(error.message.contains('a'), "{error:?}");
        assert!(error.line.is_some(), "{error:?}");
    }
}

#[test]
fn errors_name_the_line_in_the_file() {
    let error = parse("a: 1\n---\nb: [1\nc: 2\n", false).err().unwrap();
    assert!(matches!(error.line, Some(3..=5)), "{error:?}");
    assert!(!error.message.contains('\n'), "{error:?}");
    let error = parse("{\"a\": 1}\n\n{\"b\": x}\n", true).err().unwrap();
    assert_eq!(error.line, Some(3), "{error:?}");
    assert!(!error.message.contains("line"), "{error:?}");
}

#[test]
fn expansion_bombs_are_limited() {
    // Each level repeats the one before nine times: 9^20 values.
    let mut laughs = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for level in 1..20 {
        let item = format!("*a{},", level - 1).repeat(9);
        laughs.push_str(&format!("a{level}: &a{level} [{item}]\n"));
    }
    // One large text, repeated.
    let mut echo = format!("a: &a {}\nb:\n", "x".repeat(1 << 20));
    echo.push_str(&"- *a\n".repeat(40_000));
    let deep_flow = "[".repeat(100_000);
    let deep_block = "- ".repeat(100_000) + "x";
    let deep_json = "{\"a\":".repeat(100_000);
    for text in [&laughs, &echo, &deep_flow, &deep_block, &deep_json] {
        let error = parse(text, false).err().expect(&text[..20]);
        assert!(!error.message.contains(" at line"), "{error:?}");
    }
    assert!(parse(&deep_json, true).is_err());
    // Width is not depth: as many documents or values as the text contains.
    assert_eq!(values(&"--- {a: b}\n".repeat(20_000)).len(), 20_000);
    assert_eq!(
        values(&format!("[{}]", "1,".repeat(300_000)))[0].as_array().unwrap().len(),
        300_000
    );
}

#[test]
fn invalid_yaml_is_refused() {
    for text in ["\t- a", "a: b: c", "'", "a: [", "&a *a", "{", "? [", "%", "a: !!int x"] {
        let _ = parse(text, false);
        let _ = parse(text, true);
    }
    assert!(parse("a: .inf", false).is_err());
}
