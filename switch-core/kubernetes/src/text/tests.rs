use super::{Document, SyntaxError};
use serde_json::{Value, json};

/// All documents.
fn parse(text: &str, json: bool) -> Result<Vec<Document>, SyntaxError> {
    let mut documents = Vec::new();
    super::parse(text, json, &mut |document| documents.push(document))?;
    Ok(documents)
}

fn values(text: &str) -> Vec<Value> {
    parse(text, false).unwrap().into_iter().map(|d| d.value).collect()
}

#[test]
fn documents_are_told_apart_and_located() {
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
fn empty_texts_hold_nothing() {
    for text in ["", "\n", "---\n", "---\n---\n", "# only\n", "null\n", "\u{feff}", "...\n"] {
        assert_eq!(values(text), Vec::<Value>::new(), "{text:?}");
    }
}

#[test]
fn carriage_returns_and_marks_do_not_disturb() {
    assert_eq!(values("\u{feff}a: 1\r\n---\r\nb: 2\r\n"), [json!({"a": 1}), json!({"b": 2})]);
}

#[test]
fn json_is_read_alone_in_a_row_and_as_flow_yaml() {
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
fn plain_scalars_mean_what_kubectl_takes_them_for() {
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
fn a_key_may_stand_only_once() {
    for (text, json) in [("a: 1\nb: 2\na: 3\n", false), (r#"{"a": 1, "a": 2}"#, true)] {
        let error = parse(text, json).unwrap_err();
        assert!(error.message.contains('a'), "{error:?}");
        assert!(error.line.is_some(), "{error:?}");
    }
}

#[test]
fn errors_name_the_line_in_the_file() {
    let error = parse("a: 1\n---\nb: [1\nc: 2\n", false).unwrap_err();
    assert!(matches!(error.line, Some(3..=5)), "{error:?}");
    assert!(!error.message.contains('\n'), "{error:?}");
    let error = parse("{\"a\": 1}\n\n{\"b\": x}\n", true).unwrap_err();
    assert_eq!(error.line, Some(3), "{error:?}");
    assert!(!error.message.contains("line"), "{error:?}");
}

#[test]
fn bombs_are_bounded() {
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
        let error = parse(text, false).expect_err(&text[..20]);
        assert!(!error.message.contains(" at line"), "{error:?}");
    }
    assert!(parse(&deep_json, true).is_err());
    // Wide is not deep: as many documents or values as the text has room for.
    assert_eq!(values(&"--- {a: b}\n".repeat(20_000)).len(), 20_000);
    assert_eq!(
        values(&format!("[{}]", "1,".repeat(300_000)))[0].as_array().unwrap().len(),
        300_000
    );
}

#[test]
fn not_text_for_anyone() {
    for text in ["\t- a", "a: b: c", "'", "a: [", "&a *a", "{", "? [", "%", "a: !!int x"] {
        let _ = parse(text, false);
        let _ = parse(text, true);
    }
    assert!(parse("a: .inf", false).is_err());
}
