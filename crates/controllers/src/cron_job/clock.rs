//! When a schedule is due in a time zone. Pure: the present is an argument.
//!
//! Hours and minutes pass in real time, days by the calendar of the zone: a time that a clock change skips does not come,
//! one that it repeats comes twice, as upstream.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _, Zoned};
use resources::kinds::batch::{Calendar, Schedule};

/// How far ahead to look for a schedule that may never come (February 30).
const HORIZON_YEARS: i16 = 5;
/// More missed times than this are worth a warning.
const MANY_MISSED: i64 = 100;
/// A little late rather than early.
const SLACK: Duration = Duration::from_millis(100);

pub struct Clock {
    pub schedule: Schedule,
    pub zone: TimeZone,
}

impl Clock {
    /// The first time after `after`.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.schedule {
            Schedule::Every(seconds) => Timestamp::from_second(after.as_second() + *seconds as i64).ok(),
            Schedule::Calendar(calendar) => next(calendar, after.to_zoned(self.zone.clone())),
        }
    }

    /// The last time after `since` that is not after `now`, and whether very many have passed.
    pub fn due(&self, since: Timestamp, now: Timestamp) -> Option<(Timestamp, bool)> {
        let first = self.next(since).filter(|first| *first <= now)?;
        let Some(second) = self.next(first).filter(|second| *second <= now) else { return Some((first, false)) };
        let gap = second.duration_since(first).max(SignedDuration::from_secs(1));
        let many = now.duration_since(first).as_secs() / gap.as_secs() + 1 > MANY_MISSED;
        if let Schedule::Every(seconds) = self.schedule {
            let periods = now.duration_since(first).as_secs() / seconds as i64 * seconds as i64;
            return Some((first + SignedDuration::from_secs(periods), many));
        }
        // Backwards in growing steps, so that years of missed minutes need no walk through all of them.
        let mut window = gap;
        loop {
            let start = now.checked_sub(window).unwrap_or(second).max(second);
            let mut due = if start == second { Some(second) } else { self.next(start).filter(|due| *due <= now) };
            if let Some(found) = &mut due {
                while let Some(later) = self.next(*found).filter(|later| *later <= now) {
                    *found = later;
                }
                return Some((*found, many));
            }
            window *= 4;
        }
    }

    /// How long until the next time; periods are counted from `since`.
    pub fn wait(&self, since: Timestamp, now: Timestamp) -> Option<Duration> {
        let last = self.due(since, now).map_or(since, |(due, _)| due);
        let next = self.next(last)?;
        Some(Duration::try_from(next.duration_since(now)).unwrap_or_default() + SLACK)
    }
}

fn next(calendar: &Calendar, after: Zoned) -> Option<Timestamp> {
    let horizon = after.year().saturating_add(HORIZON_YEARS);
    let minute = 60 - after.timestamp().as_second().rem_euclid(60);
    let mut at =
        Timestamp::from_second(after.timestamp().as_second() + minute).ok()?.to_zoned(after.time_zone().clone());
    let has = |set: u64, value: i8| set >> value & 1 == 1;
    while at.year() <= horizon {
        if !has(calendar.months, at.month()) {
            at = at.first_of_month().ok()?.checked_add(1.month()).ok()?.start_of_day().ok()?;
        } else if !on_day(calendar, &at) {
            at = at.tomorrow().ok()?.start_of_day().ok()?;
        } else if !has(calendar.hours, at.hour()) {
            at = at.checked_add((60 - i64::from(at.minute())).minutes()).ok()?;
        } else if !has(calendar.minutes, at.minute()) {
            at = at.checked_add(1.minute()).ok()?;
        } else {
            return Some(at.timestamp());
        }
    }
    None
}

fn on_day(calendar: &Calendar, at: &Zoned) -> bool {
    let [minute, hour] = [calendar.minutes, calendar.hours].map(|set| set.trailing_zeros() as i8);
    calendar.matches(minute, hour, at.day(), at.month(), at.weekday().to_sunday_zero_offset())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(schedule: &str, zone: &str) -> Clock {
        Clock { schedule: Schedule::parse(schedule).unwrap(), zone: TimeZone::get(zone).unwrap() }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn next_times() {
        for (schedule, zone, after, expected) in [
            ("*/15 * * * *", "UTC", "2024-01-01T00:00:00Z", "2024-01-01T00:15:00Z"),
            ("*/15 * * * *", "UTC", "2024-01-01T00:14:59Z", "2024-01-01T00:15:00Z"),
            ("0 9 * * 1", "UTC", "2024-01-01T09:00:00Z", "2024-01-08T09:00:00Z"),
            ("0 0 29 2 *", "UTC", "2024-03-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("30 1 1 */3 *", "UTC", "2024-01-02T00:00:00Z", "2024-04-01T01:30:00Z"),
            ("0 9 * * *", "America/New_York", "2024-07-01T00:00:00Z", "2024-07-01T13:00:00Z"),
            // Spring forward: half past two does not come that night.
            ("30 2 * * *", "America/New_York", "2024-03-10T05:00:00Z", "2024-03-11T06:30:00Z"),
            // Fall back: half past one comes twice.
            ("30 1 * * *", "America/New_York", "2024-11-03T05:30:00Z", "2024-11-03T06:30:00Z"),
            // Every hour: the skipped one is not made up for, the repeated one counts twice.
            ("0 * * * *", "America/New_York", "2024-03-10T06:00:00Z", "2024-03-10T07:00:00Z"),
            ("0 * * * *", "America/New_York", "2024-11-03T05:00:00Z", "2024-11-03T06:00:00Z"),
            // Where midnight itself is skipped, and where the clock moves by half an hour.
            ("0 0 * * *", "America/Sao_Paulo", "2018-11-03T04:00:00Z", "2018-11-05T02:00:00Z"),
            ("15 2 * * *", "Australia/Lord_Howe", "2024-10-05T12:00:00Z", "2024-10-06T15:15:00Z"),
            ("0 3 * * *", "Europe/Paris", "2024-03-31T00:00:00Z", "2024-03-31T01:00:00Z"),
            ("30 2 * * *", "Europe/Paris", "2024-10-26T12:00:00Z", "2024-10-27T00:30:00Z"),
            ("30 2 * * *", "Europe/Paris", "2024-10-27T00:30:00Z", "2024-10-27T01:30:00Z"),
            ("0 0 */2 * 1", "UTC", "2024-01-01T00:00:00Z", "2024-01-03T00:00:00Z"),
            ("0 0 13 * 5", "UTC", "2024-01-01T00:00:00Z", "2024-01-05T00:00:00Z"),
            ("@every 90s", "UTC", "2024-01-01T00:00:00Z", "2024-01-01T00:01:30Z"),
        ] {
            assert_eq!(clock(schedule, zone).next(at(after)), Some(at(expected)), "{schedule} after {after}");
        }
        assert_eq!(clock("0 0 30 2 *", "UTC").next(at("2024-01-01T00:00:00Z")), None);
    }

    #[test]
    fn the_last_time_due_counts() {
        let since = "2024-01-01T00:00:30Z";
        for (schedule, now, expected) in [
            ("* * * * *", "2024-01-01T00:00:59Z", None),
            ("* * * * *", "2024-01-01T00:01:00Z", Some(("2024-01-01T00:01:00Z", false))),
            ("* * * * *", "2024-01-01T00:05:30Z", Some(("2024-01-01T00:05:00Z", false))),
            ("* * * * *", "2024-02-01T00:05:30Z", Some(("2024-02-01T00:05:00Z", true))),
            ("* * * * *", "2024-01-01T01:39:59Z", Some(("2024-01-01T01:39:00Z", false))),
            ("* * * * *", "2024-01-01T01:40:30Z", Some(("2024-01-01T01:40:00Z", false))),
            ("* * * * *", "2024-01-01T01:41:00Z", Some(("2024-01-01T01:41:00Z", true))),
            ("0-5 0 * * *", "2024-01-09T12:00:00Z", Some(("2024-01-09T00:05:00Z", true))),
            ("@every 1h", "2024-01-01T05:30:00Z", Some(("2024-01-01T05:00:30Z", false))),
        ] {
            let due = clock(schedule, "UTC").due(at(since), at(now));
            assert_eq!(due, expected.map(|(time, many)| (at(time), many)), "{schedule} at {now}");
        }
    }

    #[test]
    fn periods_count_from_the_last_time() {
        let wait = |now: &str| clock("@every 1h", "UTC").wait(at("2024-01-01T00:00:30Z"), at(now)).unwrap() - SLACK;
        for (now, minutes) in [("2024-01-01T00:30:30Z", 30), ("2024-01-01T02:40:30Z", 20)] {
            assert_eq!(wait(now), Duration::from_secs(minutes * 60), "{now}");
        }
    }
}
