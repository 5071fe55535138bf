//! Eviction thresholds and the flags they come from, with upstream's syntax and defaults.
//!
//! Pure. `SIGNAL<VALUE` is met when less than VALUE is left, bytes or a percentage of the capacity.

use machinery::quantity::Quantity;
use std::collections::BTreeMap;
use std::fmt;

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
}

/// What the `--eviction-...` flags say.
#[derive(Clone, Debug, PartialEq)]
pub struct Eviction {
    pub thresholds: Vec<Threshold>,
}

impl Eviction {
    /// Upstream's default of `--eviction-hard`.
    pub const HARD: &str =
        "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%";

    /// Memory alone: the disk of a developer's machine may be as full as its owner likes.
    pub const HARD_WITHOUT_DISK: &str =
        "memory.available<100Mi,nodefs.available<0%,nodefs.inodesFree<0%,imagefs.available<0%,imagefs.inodesFree<0%";

    pub fn parse(hard: &str) -> Result<Eviction, String> {
        let mut thresholds = Vec::new();
        for (name, text) in pairs("--eviction-hard", hard, '<')? {
            thresholds.extend(threshold(&name, &text).map_err(|error| format!("--eviction-hard: {error}"))?);
        }
        Ok(Eviction { thresholds })
    }
}

impl Default for Eviction {
    fn default() -> Self {
        Eviction::parse(Eviction::HARD).expect("the default is well-formed")
    }
}

/// `None` for the two percentages that turn a threshold off.
fn threshold(name: &str, text: &str) -> Result<Option<Threshold>, String> {
    let signal = Signal::parse(name)?;
    if text == "0%" || text == "100%" {
        return Ok(None);
    }
    let value = Value::parse(text).map_err(|error| format!("threshold of {name}: {error}"))?;
    match value {
        Value::Amount(quantity) if quantity.sign() <= 0 => Err(format!("threshold of {name}: {text} must be positive")),
        value => Ok(Some(Threshold { signal, value })),
    }
}

/// `KEY<VALUE,...`, with another separator where upstream has one.
fn pairs(flag: &str, text: &str, separator: char) -> Result<BTreeMap<String, String>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let pair = |item: &str| match item.split_once(separator) {
        Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
        None => Err(format!("{flag}: {item:?} is not of the form SIGNAL{separator}VALUE")),
    };
    items.map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hard_thresholds() {
        let parsed = Eviction::parse("memory.available<1Gi, nodefs.available<0%,pid.available<12.5%").unwrap();
        let one = |signal, value| Threshold { signal, value };
        assert_eq!(
            parsed.thresholds,
            [
                one(Signal::MemoryAvailable, Value::Amount(Quantity::parse("1Gi").unwrap())),
                one(Signal::PidAvailable, Value::Percent(12.5)),
            ]
        );
        assert_eq!((parsed.thresholds[0].value.of(7), parsed.thresholds[1].value.of(800)), (1 << 30, 100));
        assert_eq!(Eviction::default().thresholds.len(), 5);
        let signals: Vec<Signal> =
            Eviction::parse(Eviction::HARD_WITHOUT_DISK).unwrap().thresholds.iter().map(|t| t.signal).collect();
        assert_eq!(signals, [Signal::MemoryAvailable]);
        assert_eq!(Eviction::parse("").unwrap().thresholds, []);
    }

    #[test]
    fn mistakes_are_named() {
        for (hard, expected) in [
            ("memory.available=1Gi", "\"memory.available=1Gi\" is not of the form SIGNAL<VALUE"),
            ("memory.free<1Gi", "unrecognized eviction signal \"memory.free\"; known are memory.available"),
            ("memory.available<lots", "threshold of memory.available: \"lots\""),
            ("memory.available<101%", "\"101%\" is not between 0% and 100%"),
            ("memory.available<-1Gi", "-1Gi must be positive"),
        ] {
            let error = Eviction::parse(hard).unwrap_err();
            assert!(error.starts_with("--eviction-hard: ") && error.contains(expected), "{hard:?} gave {error:?}");
        }
    }
}
