//! The five-field crontab notation of CronJobs, with its macros.
//!
//! Knows no time zone and no clock: a schedule only says which minutes it means. Messages are those
//! of the parser upstream uses.

use std::ops::RangeInclusive;

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
    /// Whether the field was `*`; when neither is, a day matches by either of the two.
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
        // Checked by the caller, which knows whether a zone may be named here.
        let text = match text.strip_prefix("CRON_TZ=").or_else(|| text.strip_prefix("TZ=")) {
            Some(zoned) => zoned.split_once(' ').map_or("", |(_, rest)| rest.trim()),
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

impl Calendar {
    fn parse(text: &str) -> Result<Calendar, String> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        };
        let any = |field: &str| field.split(',').any(|part| part.starts_with(['*', '?']));
        Ok(Calendar {
            minutes: set(minutes, 0..=59, &[])?,
            hours: set(hours, 0..=23, &[])?,
            days: set(days, 1..=31, &[])?,
            months: set(months, 1..=12, MONTHS)?,
            weekdays: set(weekdays, 0..=6, WEEKDAYS)?,
            any_day: any(days),
            any_weekday: any(weekdays),
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

fn set(field: &str, bounds: RangeInclusive<u64>, names: &[&str]) -> Result<u64, String> {
    field.split(',').filter(|part| !part.is_empty()).try_fold(0, |set, part| Ok(set | range(part, &bounds, names)?))
}

/// `*`, `5`, `1-5`, each with an optional `/step`.
fn range(part: &str, bounds: &RangeInclusive<u64>, names: &[&str]) -> Result<u64, String> {
    let (least, most) = (*bounds.start(), *bounds.end());
    let pieces: Vec<&str> = part.split('/').collect();
    let (span, step) = match pieces[..] {
        [span] => (span, None),
        [span, step] => (span, Some(number(step, &[])?)),
        _ => return Err(format!("too many slashes: {part}")),
    };
    let ends: Vec<&str> = span.split('-').collect();
    let (start, end) = match ends[..] {
        ["*" | "?"] => (least, most),
        // `5/10` means from five on.
        [one] => {
            let start = number(one, names)?;
            (start, if step.is_some() { most } else { start })
        }
        [start, end] => (number(start, names)?, number(end, names)?),
        _ => return Err(format!("too many hyphens: {part}")),
    };
    if start < least {
        return Err(format!("beginning of range ({start}) below minimum ({least}): {part}"));
    }
    if end > most {
        return Err(format!("end of range ({end}) above maximum ({most}): {part}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {part}"));
    }
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    Ok((start..=end).step_by(usize::try_from(step).unwrap_or(usize::MAX)).fold(0, |set, value| set | 1 << value))
}

fn number(text: &str, names: &[&str]) -> Result<u64, String> {
    let named = names.iter().position(|name| !name.is_empty() && name.eq_ignore_ascii_case(text));
    match (named, text.parse::<i64>()) {
        (Some(value), _) => Ok(value as u64),
        (None, Ok(value)) => u64::try_from(value).map_err(|_| format!("negative number ({value}) not allowed: {text}")),
        (None, Err(_)) => {
            Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"))
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
        assert_eq!(Schedule::parse("@every 1h30m"), Ok(Schedule::Every(5400)));
        for (text, expected) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("@often", "unrecognized descriptor: @often"),
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
    }
}
