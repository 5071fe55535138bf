//! Timestamps in the API's two formats: `Time` (whole seconds) and `MicroTime` (six digits), both in UTC.

use jiff::Timestamp;

/// Now, as `metav1.Time`.
pub fn now_rfc3339() -> String {
    format(Timestamp::now())
}

/// Now, as `metav1.MicroTime`.
pub fn micro_now() -> String {
    format_micro(Timestamp::now())
}

pub fn format(timestamp: Timestamp) -> String {
    timestamp.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub fn format_micro(timestamp: Timestamp) -> String {
    timestamp.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Parses RFC 3339; the error is worded as Go's.
pub fn parse(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| {
        let quoted = crate::field::quote(text);
        format!(r#"parsing time {quoted} as "2006-01-02T15:04:05Z07:00": cannot parse {quoted} as "2006""#)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_normalise_to_utc() {
        let time = parse("2024-05-01T12:00:00.123456789+02:00").unwrap();
        assert_eq!(format(time), "2024-05-01T10:00:00Z");
        assert_eq!(format_micro(time), "2024-05-01T10:00:00.123456Z");
        assert!(parse("yesterday").unwrap_err().starts_with(r#"parsing time "yesterday" as"#));
    }
}
