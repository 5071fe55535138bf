//! Syntax of names, keys, ports and addresses, and generated names.
//!
//! Each check answers with the list of what is wrong, in upstream's words, empty when nothing is. The regular
//! expressions are quoted in the messages only; matching is by hand, since names are checked on every write.

use std::net::IpAddr;

use rand::RngExt;

const QUALIFIED: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const QUALIFIED_REGEX: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

pub const DNS1123_LABEL_MAX: usize = 63;
pub const DNS1123_SUBDOMAIN_MAX: usize = 253;
pub const LABEL_VALUE_MAX: usize = 63;

pub fn is_dns1123_label(value: &str) -> Vec<String> {
    check(value, 63, dns_label(value, u8::is_ascii_alphanumeric), || {
        regex_error(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
             and must start and end with an alphanumeric character",
            "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "123-abc"],
        )
    })
}

pub fn is_dns1123_subdomain(value: &str) -> Vec<String> {
    check(value, 253, value.split('.').all(|label| dns_label(label, u8::is_ascii_alphanumeric)), || {
        regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
             and must start and end with an alphanumeric character",
            r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
            &["example.com"],
        )
    })
}

pub fn is_dns1035_label(value: &str) -> Vec<String> {
    check(value, 63, dns_label(value, u8::is_ascii_alphabetic), || {
        regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', \
             start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        )
    })
}

pub fn is_wildcard_dns1123_subdomain(value: &str) -> Vec<String> {
    let matches = value.strip_prefix("*.").is_some_and(|rest| is_dns1123_subdomain(rest).is_empty());
    check(value, 253, matches, || {
        regex_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, \
             which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            r"\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
            &["*.example.com"],
        )
    })
}

/// Label and annotation keys, resource names, finalizers: `[prefix/]name`.
pub fn is_qualified_name(value: &str) -> Vec<String> {
    let examples = &["MyName", "my.name", "123-abc"];
    let (prefix, name) = match value.split('/').collect::<Vec<_>>()[..] {
        [name] => (None, name),
        [prefix, name] => (Some(prefix), name),
        _ => {
            let text = regex_error(QUALIFIED, QUALIFIED_REGEX, examples);
            return vec![format!(
                "a qualified name {text} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    let mut errors = Vec::new();
    match prefix {
        Some("") => errors.push("prefix part must be non-empty".into()),
        Some(prefix) => errors.extend(is_dns1123_subdomain(prefix).iter().map(|e| format!("prefix part {e}"))),
        None => {}
    }
    if name.is_empty() {
        errors.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        errors.push(format!("name part {}", max_len_error(63)));
    }
    if !qualified(name) {
        errors.push(format!("name part {}", regex_error(QUALIFIED, QUALIFIED_REGEX, examples)));
    }
    errors
}

pub fn is_valid_label_value(value: &str) -> Vec<String> {
    check(value, 63, value.is_empty() || qualified(value), || {
        regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
             and must start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        )
    })
}

/// Keys of ConfigMaps and Secrets, which become file names.
pub fn is_config_map_key(value: &str) -> Vec<String> {
    let mut errors = check(value, 253, !value.is_empty() && value.bytes().all(is_file_byte), || {
        regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        )
    });
    errors.extend(dots(value));
    errors
}

pub fn is_c_identifier(value: &str) -> Vec<String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let matches = !value.is_empty() && value.bytes().all(word) && !value.as_bytes()[0].is_ascii_digit();
    check(value, usize::MAX, matches, || {
        regex_error(
            "a valid C identifier must start with alphabetic character or '_', \
             followed by a string of alphanumeric characters or '_'",
            "[A-Za-z_][A-Za-z0-9_]*",
            &["my_name", "MY_NAME", "MyName"],
        )
    })
}

/// Strict names of environment variables.
pub fn is_env_var_name(value: &str) -> Vec<String> {
    let matches = !value.is_empty() && value.bytes().all(is_file_byte) && !value.as_bytes()[0].is_ascii_digit();
    let mut errors = check(value, usize::MAX, matches, || {
        regex_error(
            "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', \
             and must not start with a digit",
            "[-._a-zA-Z][-._a-zA-Z0-9]*",
            &["my.env-name", "MY_ENV.NAME", "MyEnvName1"],
        )
    });
    errors.extend(dots(value));
    errors
}

/// Names of environment variables since v1.34: any printable ASCII but `=`.
pub fn is_relaxed_env_var_name(value: &str) -> Vec<String> {
    if value.is_empty() {
        return vec!["environment variable name must be non-empty".into()];
    }
    check(value, usize::MAX, value.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'='), || {
        "a valid environment variable name must consist only of printable ASCII characters other than '='".into()
    })
}

pub fn is_http_header_name(value: &str) -> Vec<String> {
    let matches = !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    check(value, usize::MAX, matches, || {
        regex_error(
            "a valid HTTP header must consist of alphanumeric characters or '-'",
            "[-A-Za-z0-9]+",
            &["X-Header-Name"],
        )
    })
}

pub fn is_valid_percent(value: &str) -> Vec<String> {
    let digits = value.strip_suffix('%').unwrap_or_default();
    let matches = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    check(value, usize::MAX, matches, || {
        regex_error(
            "a valid percent string must be a numeric string followed by an ending '%'",
            "[0-9]+%",
            &["1%", "93%"],
        )
    })
}

/// Names that only have to fit in one path segment of a URL (RBAC objects).
pub fn is_valid_path_segment(value: &str) -> Vec<String> {
    if value == "." || value == ".." {
        return vec![format!("may not be '{value}'")];
    }
    ["/", "%"].iter().filter(|c| value.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// A port number.
pub fn is_valid_port(port: i64) -> Vec<String> {
    in_range(port, 1, 65535)
}

/// The name of a container port.
pub fn is_valid_port_name(value: &str) -> Vec<String> {
    let problems = [
        (value.len() > 15, "must be no more than 15 characters"),
        (
            !value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') || value.is_empty(),
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
        ),
        (!value.bytes().any(|b| b.is_ascii_lowercase()), "must contain at least one letter (a-z)"),
        (value.contains("--"), "must not contain consecutive hyphens"),
        (value.starts_with('-') || value.ends_with('-'), "must not begin or end with a hyphen"),
    ];
    problems.iter().filter(|(wrong, _)| *wrong).map(|(_, text)| (*text).to_owned()).collect()
}

pub fn in_range(value: i64, low: i64, high: i64) -> Vec<String> {
    if (low..=high).contains(&value) {
        Vec::new()
    } else {
        vec![format!("must be between {low} and {high}, inclusive")]
    }
}

pub fn is_valid_ip(value: &str) -> Vec<String> {
    check(value, usize::MAX, value.parse::<IpAddr>().is_ok(), || {
        "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()
    })
}

pub fn is_valid_cidr(value: &str) -> Vec<String> {
    let matches = value.split_once('/').is_some_and(|(address, prefix)| {
        let bits = address.parse().map(|ip: IpAddr| if ip.is_ipv4() { 32 } else { 128 });
        let plain = prefix.bytes().all(|b| b.is_ascii_digit()) && (prefix == "0" || !prefix.starts_with('0'));
        matches!((bits, prefix.parse::<u8>()), (Ok(bits), Ok(prefix)) if plain && prefix <= bits)
    });
    check(value, usize::MAX, matches, || "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".into())
}

/// `base` cut to 58 bytes plus five random characters of an alphabet without vowels, hence without words.
pub fn generate(base: &str) -> String {
    const MAX_BASE: usize = 58;
    let end = (0..=base.len().min(MAX_BASE)).rev().find(|end| base.is_char_boundary(*end)).unwrap_or(0);
    format!("{}{}", &base[..end], random_suffix(5))
}

/// Characters of upstream's name alphabet.
pub fn random_suffix(length: usize) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    (0..length).map(|_| ALPHABET[rng.random_range(0..ALPHABET.len())] as char).collect()
}

pub fn max_len_error(length: usize) -> String {
    format!("must be no more than {length} bytes")
}

fn check(value: &str, max: usize, matches: bool, error: impl FnOnce() -> String) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > max {
        errors.push(max_len_error(max));
    }
    if !matches {
        errors.push(error());
    }
    errors
}

fn regex_error(message: &str, regex: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{regex}')", examples.join(" or "))
}

/// A lower-case DNS label whose first byte passes `first`.
fn dns_label(value: &str, first: fn(&u8) -> bool) -> bool {
    let bytes = value.as_bytes();
    let body = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    matches!((bytes.first(), bytes.last()), (Some(head), Some(tail))
        if first(head) && *tail != b'-' && bytes.iter().all(body))
}

fn qualified(value: &str) -> bool {
    let bytes = value.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(head), Some(tail))
        if head.is_ascii_alphanumeric() && tail.is_ascii_alphanumeric() && bytes.iter().copied().all(is_file_byte))
}

fn is_file_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

fn dots(value: &str) -> Option<String> {
    match value {
        "." => Some("must not be '.'".into()),
        ".." => Some("must not be '..'".into()),
        value if value.starts_with("..") => Some("must not start with '..'".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged() {
        type Check = fn(&str) -> Vec<String>;
        let long = "a".repeat(64);
        for (check, good, bad) in [
            (is_dns1123_label as Check, &["a", "a-b", "1a"][..], &["", "-a", "a-", "A", "a.b", &*long][..]),
            (is_dns1123_subdomain, &["a", "a.b-c.1"], &["", ".", "a..b", "a_b", "a.-b"]),
            (is_dns1035_label, &["a", "a1"], &["1a", "", "a-"]),
            (is_qualified_name, &["a", "A.b_c", "example.com/x"], &["", "/a", "a/", "a/b/c", "Exa/x", "-a"]),
            (is_valid_label_value, &["", "a", "A_b.c"], &["-", "a b", &*long]),
            (is_config_map_key, &["a", ".a", "A_b"], &["", ".", "..", "..a", "a/b"]),
            (is_c_identifier, &["_a", "A1"], &["", "1", "a-b"]),
            (is_env_var_name, &["a.b", "_"], &["", "1a", "..", "a=b"]),
            (is_relaxed_env_var_name, &["1 a"], &["", "a=b", "é"]),
            (is_valid_path_segment, &["a:b"], &[".", "a/b", "a%"]),
            (is_valid_port_name, &["http", "a-1"], &["", "1", "a--b", "-a", "A", "abcdefghijklmnop"]),
            (is_valid_ip, &["1.2.3.4", "::1"], &["", "1.2.3", "01.2.3.4"]),
            (is_valid_cidr, &["10.0.0.0/8", "::/0"], &["10.0.0.0", "10.0.0.0/33", "1.2.3.4/+8", "1.2.3.4/08"]),
            (is_valid_percent, &["5%"], &["%", "5", "a%"]),
            (is_wildcard_dns1123_subdomain, &["*.a.b"], &["a.b", "*", "*.A"]),
        ] {
            for value in good {
                assert_eq!(check(value), [""; 0], "{value}");
            }
            for value in bad {
                assert_ne!(check(value), [""; 0], "{value}");
            }
        }
    }

    #[test]
    fn messages_read_as_upstream() {
        assert_eq!(
            is_dns1123_label("A"),
            ["a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
              and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"]
        );
        assert_eq!(is_valid_port(0), ["must be between 1 and 65535, inclusive"]);
    }

    #[test]
    fn generated_names_fit_a_label() {
        let name = generate(&"a".repeat(80));
        assert_eq!(name.len(), 63);
        assert!(is_dns1123_label(&name).is_empty());
        assert_ne!(generate("x-"), generate("x-"));
        assert_eq!(generate(&"é".repeat(40)).chars().filter(|c| *c == 'é').count(), 29);
    }
}
