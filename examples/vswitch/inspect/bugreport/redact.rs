//! Removes secrets from any part of a report: whatever looks like a secret is removed, if in doubt
//! too much.

/// Replaces what was removed.
pub(super) const REMOVED: &str = "[removed]";

/// Names whose values are secrets, in any case, with `-` and `_` alike.
const SECRET_NAMES: [&str; 12] = [
    "token",
    "password",
    "passwd",
    "secret",
    "hash_key",
    "api_key",
    "apikey",
    "private_key",
    "authorization",
    "client_key_data",
    "client_certificate_data",
    "certificate_authority_data",
];

/// Environment variables that are kept. They contain no secrets, and show how the process was
/// started.
const ENVIRONMENT: [&str; 12] = [
    "KUBECONFIG",
    "KUBERNETES_SERVICE_HOST",
    "KUBERNETES_SERVICE_PORT",
    "LANG",
    "NODE_NAME",
    "PATH",
    "POD_NAME",
    "POD_NAMESPACE",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "TZ",
    "XDG_RUNTIME_DIR",
];

/// Removes secrets from a text.
pub(super) fn redact(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut is_in_pem = false;
    for line in text.split_inclusive('\n') {
        if is_in_pem {
            is_in_pem = !line.contains("-----END ");
            continue;
        }
        if let Some((before, rest)) = line.split_once("-----BEGIN ") {
            is_in_pem = !rest.contains("-----END ");
            result.push_str(&redact_line(before));
            result.push_str(REMOVED);
            result.push('\n');
            continue;
        }
        result.push_str(&redact_line(line));
    }
    result
}

/// A command line without the values of secret flags.
pub(super) fn command_line(words: &[String]) -> String {
    let mut shown = Vec::new();
    let mut is_value = false;
    for word in words {
        let flag = word.strip_prefix("--").map(|flag| flag.split_once('=').unwrap_or((flag, "")));
        shown.push(match flag {
            _ if is_value && !word.starts_with("--") => REMOVED.to_owned(),
            Some((name, value)) if is_secret(name) && !value.is_empty() => {
                format!("--{name}={REMOVED}")
            }
            _ => redact(word),
        });
        is_value = flag.is_some_and(|(name, value)| is_secret(name) && value.is_empty());
    }
    shown.join(" ") + "\n"
}

/// The environment variables (`NAME=VALUE`) that may be shown, and the number of the others.
pub(super) fn environment(variables: &[String]) -> String {
    let is_shown = |variable: &&String| {
        variable.split_once('=').is_some_and(|(name, _)| ENVIRONMENT.contains(&name))
    };
    let mut shown: Vec<_> = variables.iter().filter(is_shown).map(|v| redact(v)).collect();
    shown.sort();
    let others = variables.len() - shown.len();
    shown.push(format!("({others} other variables are left out)\n"));
    shown.join("\n")
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    SECRET_NAMES.iter().any(|secret| name == *secret || name.ends_with(&format!("_{secret}")))
}

fn redact_line(line: &str) -> String {
    let mut result = String::with_capacity(line.len());
    let mut rest = line;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !is_of_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            let first = rest.chars().next().map_or(rest.len(), char::len_utf8);
            result.push_str(&rest[..first]);
            rest = &rest[first..];
            continue;
        }
        if looks_like_token(word) {
            result.push_str(REMOVED);
        } else if let Some(at) = after.strip_prefix("://").and_then(user_info) {
            result.push_str(word);
            result.push_str("://");
            result.push_str(REMOVED);
            rest = &after[3 + at..];
            continue;
        } else {
            result.push_str(word);
        }
        rest = after;
        if (is_secret(word) || word.eq_ignore_ascii_case("bearer"))
            && let Some((separator, value)) = value_after(word, after)
        {
            result.push_str(&after[..separator]);
            result.push_str(REMOVED);
            rest = &after[separator + value..];
        }
    }
    result
}

fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// Length of the user information before the `@` of an authority (`user:password@host`).
fn user_info(authority: &str) -> Option<usize> {
    let end = authority
        .find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\''))
        .unwrap_or(authority.len());
    authority[..end].rfind('@')
}

/// Length of the separator between a secret's name and its value, and of the value, which extends
/// to its closing quote, or else to the end of its line or JSON field. Without a separator there is
/// no value.
fn value_after(name: &str, text: &str) -> Option<(usize, usize)> {
    let separator =
        text.find(|c: char| !matches!(c, '"' | '\'' | ':' | '=' | ' ')).unwrap_or(text.len());
    let head = &text[..separator];
    let is_assigned =
        head.contains([':', '=']) || name.eq_ignore_ascii_case("bearer") && head == " ";
    let value = &text[separator..];
    let is_quoted = head.ends_with(['"', '\'']);
    let end = match (is_quoted, head.chars().last()) {
        (true, Some(quote)) => value.find(quote).unwrap_or(value.len()),
        _ => value.find(['\n', '\r', ',', '}', '"']).unwrap_or(value.len()),
    };
    (is_assigned && end > 0).then_some((separator, end))
}

/// A JSON Web Token (such as a ServiceAccount's), or a bootstrap token (`abcdef.0123456789abcdef`).
fn looks_like_token(word: &str) -> bool {
    let parts: Vec<&str> = word.split('.').collect();
    let is_jwt = word.starts_with("eyJ") && word.len() > 40;
    let is_bootstrap = matches!(&parts[..], [id, secret] if id.len() == 6 && secret.len() == 16
        && word.bytes().all(|b| b == b'.' || b.is_ascii_lowercase() || b.is_ascii_digit()));
    is_jwt || is_bootstrap
}

#[cfg(test)]
mod tests {
    use super::*;

    const JWT: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl";

    #[test]
    fn only_secrets_are_removed() {
        for (text, expected) in [
            ("nothing to hide\n", "nothing to hide\n"),
            ("token: abc\nnext: 1\n", "token: [removed]\nnext: 1\n"),
            ("{\"token\":\"abc\",\"pods\":2}", "{\"token\":\"[removed]\",\"pods\":2}"),
            ("{\"password\": \"a b\"}", "{\"password\": \"[removed]\"}"),
            ("Authorization: Basic Zm9v\n", "Authorization: [removed]\n"),
            ("sent Bearer abc.def\n", "sent Bearer [removed]\n"),
            ("client-key-data: LS0t\n", "client-key-data: [removed]\n"),
            ("MY_API_KEY=x\n", "MY_API_KEY=[removed]\n"),
            ("https://u:p@es:9200/_bulk\n", "https://[removed]@es:9200/_bulk\n"),
            ("https://es:9200/a@b\n", "https://es:9200/a@b\n"),
            ("join abcdef.0123456789abcdef now", "join [removed] now"),
            ("pod shop/secret-service was added", "pod shop/secret-service was added"),
            ("the token is old", "the token is old"),
            ("reason=policy dst=10.0.0.1:80", "reason=policy dst=10.0.0.1:80"),
        ] {
            assert_eq!(redact(text), expected);
        }
        assert_eq!(redact(&format!("got {JWT}, went")), "got [removed], went");
        let pem =
            "a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\nxyz\n-----END RSA PRIVATE KEY-----\nb\n";
        assert_eq!(redact(pem), "a\n[removed]\nb\n");
    }

    #[test]
    fn flags_and_variables() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let line = words(
            "vswitch run --hash-key 0f0f --token=abc --node n1 --kubeconfig /root/.kube/config --output elasticsearch=https://u:p@es",
        );
        assert_eq!(
            command_line(&line),
            "vswitch run --hash-key [removed] --token=[removed] --node n1 --kubeconfig /root/.kube/config \
             --output elasticsearch=https://[removed]@es\n"
        );
        let variables = words("RUST_LOG=debug AWS_SECRET=x NODE_NAME=n1 HOME=/root");
        assert_eq!(
            environment(&variables),
            "NODE_NAME=n1\nRUST_LOG=debug\n(2 other variables are left out)\n"
        );
    }
}
