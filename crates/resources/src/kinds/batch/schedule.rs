//! The five-field crontab notation of CronJobs, with its macros.
//!
//! Knows no clock: a schedule only says which minutes it means. Messages are those of the parser upstream uses.

use std::num::IntErrorKind;
use std::ops::RangeInclusive;

use jiff::tz::TimeZone;
use machinery::duration;

/// When to run. Each set has bit `n` for the value `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    Calendar(Calendar),
    /// `@every 90s`, in whole seconds.
    Every(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar {
    pub minutes: u64,
    pub hours: u64,
    pub days: u64,
    pub months: u64,
    /// Sunday is 0.
    pub weekdays: u64,
    /// Whether the field is any day (`*`, but not `*/2`); when neither is, a day matches by either of the two.
    pub any_day: bool,
    pub any_weekday: bool,
}

const MACROS: &[(&str, &str)] = &[
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];
const MONTHS: &[&str] = &["", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Schedule {
    pub fn parse(text: &str) -> Result<Schedule, String> {
        if text.is_empty() {
            return Err("empty spec string".into());
        }
        // Whether a zone may be named here, the caller knows.
        let text = match text.strip_prefix("CRON_TZ=").or_else(|| text.strip_prefix("TZ=")) {
            Some(zoned) => {
                let (zone, rest) = zoned.split_once(' ').unwrap_or((zoned, ""));
                time_zone(zone).map_err(|error| format!("provided bad location {zone}: {error}"))?;
                rest.trim()
            }
            None => text,
        };
        if let Some(period) = text.strip_prefix("@every ") {
            let nanos =
                duration::parse_go(period).map_err(|error| format!("failed to parse duration {text}: {error}"))?;
            return Ok(Schedule::Every(u64::try_from(nanos / 1_000_000_000).unwrap_or(0).max(1)));
        }
        if text.starts_with('@') {
            let found = MACROS.iter().find(|(name, _)| *name == text);
            let (_, fields) = found.ok_or_else(|| format!("unrecognized descriptor: {text}"))?;
            return Calendar::parse(fields).map(Schedule::Calendar);
        }
        Calendar::parse(text).map(Schedule::Calendar)
    }
}

/// A zone by its name in the IANA database, to the letter; the empty name is UTC.
pub fn time_zone(name: &str) -> Result<TimeZone, String> {
    if name.is_empty() {
        return Ok(TimeZone::UTC);
    }
    if name == "Local" {
        return Ok(TimeZone::system());
    }
    let zone = TimeZone::get(name).ok().filter(|zone| zone.iana_name() == Some(name) && !zone.is_unknown());
    zone.ok_or_else(|| format!("unknown time zone {name}"))
}

impl Calendar {
    fn parse(text: &str) -> Result<Calendar, String> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        if fields.len() != 5 {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        }
        let field = |at: usize, bounds, names| set(fields[at], bounds, names);
        let ((days, any_day), (weekdays, any_weekday)) = (field(2, 1..=31, &[])?, field(4, 0..=6, WEEKDAYS)?);
        Ok(Calendar {
            minutes: field(0, 0..=59, &[])?.0,
            hours: field(1, 0..=23, &[])?.0,
            days,
            months: field(3, 1..=12, MONTHS)?.0,
            weekdays,
            any_day,
            any_weekday,
        })
    }

    /// Whether a minute is meant, given what a calendar says about it (Sunday is 0).
    pub fn matches(&self, minute: i8, hour: i8, day: i8, month: i8, weekday: i8) -> bool {
        let has = |set: u64, value: i8| set >> value & 1 == 1;
        let (by_day, by_weekday) = (has(self.days, day), has(self.weekdays, weekday));
        let any = self.any_day || self.any_weekday;
        let date = if any { by_day && by_weekday } else { by_day || by_weekday };
        has(self.minutes, minute) && has(self.hours, hour) && has(self.months, month) && date
    }
}

/// The values of a field, and whether it is unrestricted.
fn set(field: &str, bounds: RangeInclusive<u64>, names: &[&str]) -> Result<(u64, bool), String> {
    let parts = field.split(',').filter(|part| !part.is_empty());
    parts.map(|part| range(part, &bounds, names)).try_fold((0, false), |(set, any), part| {
        let (values, all) = part?;
        Ok((set | values, any || all))
    })
}

/// `*`, `5`, `1-5`, each with an optional `/step`.
fn range(part: &str, bounds: &RangeInclusive<u64>, names: &[&str]) -> Result<(u64, bool), String> {
    let (least, most) = (*bounds.start(), *bounds.end());
    let pieces: Vec<&str> = part.split('/').collect();
    let ends: Vec<&str> = pieces[0].split('-').collect();
    let (start, mut end, mut any) = match ends[..] {
        // Whatever follows a hyphen after a star is ignored.
        ["*" | "?", ..] => (least, most, true),
        [one] => number(one, names).map(|value| (value, value, false))?,
        [start, end] => (number(start, names)?, number(end, names)?, false),
        _ => return Err(format!("too many hyphens: {part}")),
    };
    let step = match pieces[..] {
        [_] => 1,
        [_, step] => number(step, &[])?,
        _ => return Err(format!("too many slashes: {part}")),
    };
    if pieces.len() == 2 && ends.len() == 1 {
        end = most; // `5/10` means from five on
    }
    any &= step <= 1;
    if start < least {
        return Err(format!("beginning of range ({start}) below minimum ({least}): {part}"));
    }
    if end > most {
        return Err(format!("end of range ({end}) above maximum ({most}): {part}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {part}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    Ok(((start..=end).step_by(step).fold(0, |set, value| set | 1 << value), any))
}

fn number(text: &str, names: &[&str]) -> Result<u64, String> {
    let named = names.iter().position(|name| !name.is_empty() && name.eq_ignore_ascii_case(text));
    match (named, text.parse::<i64>()) {
        (Some(value), _) => Ok(value as u64),
        (None, Ok(value)) => u64::try_from(value).map_err(|_| format!("negative number ({value}) not allowed: {text}")),
        (None, Err(error)) => {
            let overflow = matches!(error.kind(), IntErrorKind::PosOverflow | IntErrorKind::NegOverflow);
            let why = if overflow { "value out of range" } else { "invalid syntax" };
            Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(values: &[u64]) -> u64 {
        values.iter().fold(0, |set, value| set | 1 << value)
    }

    #[test]
    fn schedules() {
        let calendar = |text: &str| match Schedule::parse(text) {
            Ok(Schedule::Calendar(calendar)) => calendar,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(calendar("*/15 * * * *").minutes, bits(&[0, 15, 30, 45]));
        assert_eq!(calendar("50/4 * * * *").minutes, bits(&[50, 54, 58]));
        assert_eq!(calendar("0 1-3,22 * * *").hours, bits(&[1, 2, 3, 22]));
        assert_eq!(calendar("0 0 1 JAN-mar mon").weekdays, bits(&[1]));
        assert_eq!(calendar("0 0 1 JAN-mar mon").months, bits(&[1, 2, 3]));
        assert_eq!(calendar("@hourly"), calendar("0 * * * *"));
        assert_eq!(calendar("TZ=UTC 0 * * * *"), calendar("0 * * * *"));
        assert_eq!(calendar("CRON_TZ=Asia/Tokyo   0 * * * *"), calendar("0 * * * *"));
        assert_eq!(calendar("  0  *   * * ? "), calendar("0 * * * *"));
        assert_eq!(calendar("* */1 * * ?"), calendar("* * * * *"));
        assert_eq!(calendar("*-7 * * * *"), calendar("* * * * *"));
        assert_eq!(calendar("0,,30, * * * *").minutes, bits(&[0, 30]));
        assert_eq!(calendar("10-30/10 * * * *").minutes, bits(&[10, 20, 30]));
        assert_eq!(calendar("*/61 * * * *").minutes, bits(&[0]));
        assert_eq!(calendar("0 0 * * SUN,Tue-thu").weekdays, bits(&[0, 2, 3, 4]));
        for (name, fields) in MACROS {
            assert_eq!(calendar(name), calendar(fields), "{name}");
        }
        assert_eq!(Schedule::parse("@every 500ms"), Ok(Schedule::Every(1)));
        assert_eq!(Schedule::parse("@every 1h30m"), Ok(Schedule::Every(5400)));
        for (text, expected) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("* * * * * *", "expected exactly 5 fields, found 6: [* * * * * *]"),
            ("", "empty spec string"),
            ("@often", "unrecognized descriptor: @often"),
            ("@Daily", "unrecognized descriptor: @Daily"),
            ("@every soon", r#"failed to parse duration @every soon: time: invalid duration "soon""#),
            ("TZ=Mars/Base 0 * * * *", "provided bad location Mars/Base: unknown time zone Mars/Base"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            ("* * * 13 *", "end of range (13) above maximum (12): 13"),
            ("* 1/2/3 * * *", "too many slashes: 1/2/3"),
            ("-1 * * * *", r#"failed to parse int from : strconv.Atoi: parsing "": invalid syntax"#),
            ("*/-2 * * * *", "negative number (-2) not allowed: -2"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("* 5-3 * * *", "beginning of range (5) beyond end of range (3): 5-3"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("x * * * *", r#"failed to parse int from x: strconv.Atoi: parsing "x": invalid syntax"#),
        ] {
            assert_eq!(Schedule::parse(text), Err(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_day_matches_by_either_field_when_both_are_given() {
        let matches = |text: &str, day: i8, weekday: i8| match Schedule::parse(text) {
            Ok(Schedule::Calendar(calendar)) => calendar.matches(0, 0, day, 1, weekday),
            other => panic!("{text}: {other:?}"),
        };
        assert!(matches("0 0 13 * 5", 13, 1));
        assert!(matches("0 0 13 * 5", 1, 5));
        assert!(!matches("0 0 13 * 5", 1, 1));
        assert!(!matches("0 0 13 * *", 1, 5));
        assert!(!matches("0 0 * * 5", 13, 1));
        assert!(!matches("0 0 */1 * 5", 13, 1));
        assert!(matches("0 0 */2 * 5", 13, 1), "a step restricts the field");
    }

    #[test]
    fn zones_are_named_to_the_letter() {
        for (name, known) in [
            ("", true),
            ("UTC", true),
            ("Etc/UTC", true),
            ("Europe/Paris", true),
            ("US/Pacific", true),
            ("EST5EDT", true),
            ("europe/paris", false),
            ("Etc/Unknown", false),
            ("Mars/Base", false),
        ] {
            assert_eq!(time_zone(name).is_ok(), known, "{name}");
        }
    }
}
