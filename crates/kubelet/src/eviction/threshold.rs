//! Eviction thresholds and the flags they come from, with upstream's syntax and defaults.
//!
//! Pure. `SIGNAL<VALUE` is met when less than VALUE is left, bytes or a percentage of the capacity.

use super::signals::Levels;
use machinery::duration;
use machinery::quantity::Quantity;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What may run short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    MemoryAvailable,
    NodefsAvailable,
    NodefsInodesFree,
    ImagefsAvailable,
    ImagefsInodesFree,
    PidAvailable,
}

impl Signal {
    const ALL: [(&'static str, Signal); 6] = [
        ("memory.available", Signal::MemoryAvailable),
        ("nodefs.available", Signal::NodefsAvailable),
        ("nodefs.inodesFree", Signal::NodefsInodesFree),
        ("imagefs.available", Signal::ImagefsAvailable),
        ("imagefs.inodesFree", Signal::ImagefsInodesFree),
        ("pid.available", Signal::PidAvailable),
    ];

    fn parse(text: &str) -> Result<Signal, String> {
        let found = Signal::ALL.iter().find(|(name, _)| *name == text).map(|(_, signal)| *signal);
        found.ok_or_else(|| {
            let known = Signal::ALL.map(|(name, _)| name).join(", ");
            format!("unrecognized eviction signal {text:?}; known are {known}")
        })
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Signal::ALL.iter().find(|(_, signal)| signal == self).map(|(name, _)| *name);
        f.write_str(name.unwrap_or_default())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    Amount(Quantity),
    /// Of the capacity.
    Percent(f64),
}

impl Value {
    fn parse(text: &str) -> Result<Value, String> {
        match text.strip_suffix('%') {
            Some(number) => {
                let percent: f64 = number.parse().map_err(|_| format!("{text:?} is not a percentage"))?;
                if !(0.0..=100.0).contains(&percent) {
                    return Err(format!("{text:?} is not between 0% and 100%"));
                }
                Ok(Value::Percent(percent))
            }
            None => Ok(Value::Amount(Quantity::parse(text).map_err(|error| format!("{text:?}: {error}"))?)),
        }
    }

    /// In the units of `capacity`.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Value::Amount(quantity) => quantity.value().max(0) as u64,
            Value::Percent(percent) => (capacity as f64 * percent / 100.0) as u64,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub value: Value,
    /// How long it must have been met; zero for a hard threshold.
    pub grace: Duration,
    /// What must be left beyond `value` before enough is reclaimed.
    pub reclaim: Option<Value>,
}

impl Threshold {
    pub fn is_hard(&self) -> bool {
        self.grace.is_zero()
    }

    /// Whether too little is left; once it was met, until the minimum reclaim is there as well.
    pub fn is_met(&self, levels: &Levels, was_met: bool) -> bool {
        let Some(level) = levels.get(&self.signal) else { return false };
        let more = self.reclaim.filter(|_| was_met).map_or(0, |reclaim| reclaim.of(level.capacity));
        level.available < self.value.of(level.capacity).saturating_add(more)
    }
}

/// The `--eviction-...` flags as they are written.
#[derive(Clone, Debug)]
pub struct Flags<'a> {
    pub hard: &'a str,
    pub soft: &'a str,
    pub soft_grace_period: &'a str,
    pub minimum_reclaim: &'a str,
    pub pressure_transition_period: &'a str,
    pub max_pod_grace_period: i64,
}

impl Default for Flags<'_> {
    fn default() -> Self {
        Flags {
            hard: Eviction::HARD,
            soft: "",
            soft_grace_period: "",
            minimum_reclaim: "",
            pressure_transition_period: "5m0s",
            max_pod_grace_period: 0,
        }
    }
}

/// What the `--eviction-...` flags say.
#[derive(Clone, Debug, PartialEq)]
pub struct Eviction {
    pub thresholds: Vec<Threshold>,
    /// A condition is kept this long after its cause is gone.
    pub transition: Duration,
    /// Bounds the grace of pods that soft thresholds evict; negative leaves it to them.
    pub max_pod_grace: i64,
}

impl Eviction {
    /// Upstream's default of `--eviction-hard`.
    pub const HARD: &str =
        "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%";

    /// Memory alone: the disk of a developer's machine may be as full as its owner likes.
    pub const HARD_WITHOUT_DISK: &str =
        "memory.available<100Mi,nodefs.available<0%,nodefs.inodesFree<0%,imagefs.available<0%,imagefs.inodesFree<0%";

    pub fn parse(flags: &Flags) -> Result<Eviction, String> {
        let mut graces = parsed("--eviction-soft-grace-period", flags.soft_grace_period, '=', |_, text| {
            let nanoseconds = duration::parse_go(text)?;
            let positive = u64::try_from(nanoseconds).ok().filter(|&nanoseconds| nanoseconds > 0);
            positive.map(Duration::from_nanos).ok_or_else(|| format!("{text} must be positive"))
        })?;
        let reclaims = parsed("--eviction-minimum-reclaim", flags.minimum_reclaim, '=', |_, text| Value::parse(text))?;
        let mut thresholds = Vec::new();
        for (flag, text) in [("--eviction-hard", flags.hard), ("--eviction-soft", flags.soft)] {
            for (signal, value) in parsed(flag, text, '<', threshold)? {
                let grace = match flag {
                    "--eviction-hard" => Duration::ZERO,
                    _ => graces.remove(&signal).ok_or_else(|| {
                        format!("--eviction-soft: {signal} needs its period in --eviction-soft-grace-period")
                    })?,
                };
                let reclaim = reclaims.get(&signal).copied();
                thresholds.extend(value.map(|value| Threshold { signal, value, grace, reclaim }));
            }
        }
        if let Some(signal) = graces.keys().next() {
            return Err(format!("--eviction-soft-grace-period: {signal} is not in --eviction-soft"));
        }
        let transition = duration::parse_go(flags.pressure_transition_period)
            .and_then(|nanoseconds| u64::try_from(nanoseconds).map_err(|_| "it must not be negative".to_owned()))
            .map_err(|error| format!("--eviction-pressure-transition-period: {error}"))?;
        let transition = Duration::from_nanos(transition);
        Ok(Eviction { thresholds, transition, max_pod_grace: flags.max_pod_grace_period })
    }
}

impl Default for Eviction {
    fn default() -> Self {
        Eviction::parse(&Flags::default()).expect("the default is well-formed")
    }
}

/// `None` for the two percentages that turn a threshold off.
fn threshold(_: Signal, text: &str) -> Result<Option<Value>, String> {
    if text == "0%" || text == "100%" {
        return Ok(None);
    }
    match Value::parse(text)? {
        Value::Amount(quantity) if quantity.sign() <= 0 => Err(format!("{text} must be positive")),
        value => Ok(Some(value)),
    }
}

/// `SIGNAL<VALUE,...`, with another separator where upstream has one.
fn parsed<T>(
    flag: &str,
    text: &str,
    separator: char,
    parse: impl Fn(Signal, &str) -> Result<T, String>,
) -> Result<BTreeMap<Signal, T>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let pair = |item: &str| {
        let form = || format!("{item:?} is not of the form SIGNAL{separator}VALUE");
        let (name, value) = item.split_once(separator).ok_or_else(form)?;
        let signal = Signal::parse(name.trim())?;
        Ok((signal, parse(signal, value.trim()).map_err(|error: String| format!("{signal}: {error}"))?))
    };
    items.map(pair).collect::<Result<_, String>>().map_err(|error| format!("{flag}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(hard: &str, soft: &str, grace: &str, reclaim: &str) -> Result<Vec<Threshold>, String> {
        let flags = Flags { hard, soft, soft_grace_period: grace, minimum_reclaim: reclaim, ..Flags::default() };
        Eviction::parse(&flags).map(|eviction| eviction.thresholds)
    }

    #[test]
    fn thresholds() {
        let parsed = parse(
            "memory.available<1Gi, nodefs.available<0%,pid.available<12.5%",
            "memory.available<2Gi",
            "memory.available=1m30s",
            "pid.available=7",
        )
        .unwrap();
        let amount = |text| Value::Amount(Quantity::parse(text).unwrap());
        let one =
            |signal, value, seconds, reclaim| Threshold { signal, value, grace: Duration::from_secs(seconds), reclaim };
        assert_eq!(
            parsed,
            [
                one(Signal::MemoryAvailable, amount("1Gi"), 0, None),
                one(Signal::PidAvailable, Value::Percent(12.5), 0, Some(amount("7"))),
                one(Signal::MemoryAvailable, amount("2Gi"), 90, None),
            ]
        );
        assert_eq!((parsed[0].value.of(7), parsed[1].value.of(800)), (1 << 30, 100));
        assert_eq!(Eviction::default().thresholds.len(), 5);
        let signals: Vec<Signal> =
            parse(Eviction::HARD_WITHOUT_DISK, "", "", "").unwrap().iter().map(|t| t.signal).collect();
        assert_eq!(signals, [Signal::MemoryAvailable]);
        assert_eq!(parse("", "", "", "").unwrap(), []);
    }

    #[test]
    fn mistakes_are_named() {
        for (hard, soft, grace, reclaim, expected) in [
            (
                "memory.available=1Gi",
                "",
                "",
                "",
                "--eviction-hard: \"memory.available=1Gi\" is not of the form SIGNAL<VALUE",
            ),
            ("memory.free<1Gi", "", "", "", "--eviction-hard: unrecognized eviction signal \"memory.free\"; known are"),
            ("memory.available<lots", "", "", "", "--eviction-hard: memory.available: \"lots\""),
            ("memory.available<101%", "", "", "", "\"101%\" is not between 0% and 100%"),
            ("memory.available<-1Gi", "", "", "", "-1Gi must be positive"),
            ("", "memory.available<1Gi", "", "", "--eviction-soft: memory.available needs its period"),
            (
                "",
                "",
                "memory.available=1m",
                "",
                "--eviction-soft-grace-period: memory.available is not in --eviction-soft",
            ),
            ("", "memory.available<1Gi", "memory.available=-1m", "", "-1m must be positive"),
            ("", "", "", "memory.available=x", "--eviction-minimum-reclaim: memory.available: \"x\""),
        ] {
            let error = parse(hard, soft, grace, reclaim).unwrap_err();
            assert!(error.contains(expected), "{error:?} should say {expected:?}");
        }
    }
}
