//! Resource quantities (`100m`, `1.5Gi`, `2e3`): exact fixed-point numbers with a canonical spelling.
//!
//! The amount is held in nanounits in an i128, which covers all that upstream can represent (it caps at
//! 2^63-1 whole units and rounds up below a nano). The suffix family is kept, because it is part of the spelling.

use std::{
    cmp::Ordering,
    fmt,
    iter::Sum,
    ops::{Add, AddAssign, Neg, Sub, SubAssign},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

const NANO: i128 = 1_000_000_000;
/// Upstream caps larger amounts here.
const MAX: i128 = i64::MAX as i128 * NANO;

#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// A whole number, spelt with decimal suffixes.
    pub fn new(value: i64) -> Self {
        Self { nanos: value as i128 * NANO, format: Format::DecimalSi }
    }

    /// A whole number, spelt with binary suffixes: bytes.
    pub fn bytes(value: i64) -> Self {
        Self { nanos: value as i128 * NANO, format: Format::BinarySi }
    }

    pub fn milli(value: i64) -> Self {
        Self { nanos: value as i128 * (NANO / 1000), format: Format::DecimalSi }
    }

    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return Err(ParseError::Format);
        }
        let (base, exponent, format) = suffix_of(suffix)?;
        let nanos = scale(whole, fraction, base, exponent).min(MAX);
        Ok(Self { nanos: if text.starts_with('-') { -nanos } else { nanos }, format })
    }

    /// Whole units, rounded up.
    pub fn value(self) -> i64 {
        self.rounded_up(NANO)
    }

    /// Thousandths, rounded up.
    pub fn milli_value(self) -> i64 {
        self.rounded_up(NANO / 1000)
    }

    pub fn nanos(self) -> i128 {
        self.nanos
    }

    pub fn as_f64(self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    pub fn format(self) -> Format {
        self.format
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// -1, 0 or 1.
    pub fn sign(self) -> i32 {
        self.nanos.signum() as i32
    }

    fn rounded_up(self, unit: i128) -> i64 {
        let up = self.nanos.div_euclid(unit) + i128::from(self.nanos.rem_euclid(unit) != 0);
        up.clamp(i64::MIN as i128, i64::MAX as i128) as i64
    }

    fn with(self, nanos: i128, other: Self) -> Self {
        // Zero has no say in the spelling: summing up starts from it.
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: nanos.clamp(-MAX, MAX), format }
    }
}

/// Base, exponent and family of a suffix.
fn suffix_of(suffix: &str) -> Result<(u32, i32, Format), ParseError> {
    const DECIMAL: [(&str, i32); 10] =
        [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
    const BINARY: [(&str, i32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((10, *exponent, Format::DecimalSi));
    }
    if let Some((_, exponent)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((2, *exponent, Format::BinarySi));
    }
    if let Some(exponent) = suffix.strip_prefix(['e', 'E']) {
        return exponent
            .parse()
            .map(|exponent| (10, exponent, Format::DecimalExponent))
            .map_err(|_| ParseError::Suffix);
    }
    let letters = suffix.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(['+', '-']);
    Err(if letters.chars().all(|c| "eEinumkKMGTP".contains(c)) { ParseError::Suffix } else { ParseError::Format })
}

/// `whole.fraction` times `base^exponent` in nanounits, rounded up and saturating above `MAX`.
fn scale(whole: &str, fraction: &str, base: u32, exponent: i32) -> i128 {
    let digits: String = [whole, fraction].concat();
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    // amount = digits * 10^decimal * 2^binary
    let decimal = (if base == 10 { exponent } else { 0 }).saturating_add(9 - fraction.len() as i32);
    let binary = if base == 2 { exponent } else { 0 };
    let magnitude = (digits.len() as i32).saturating_add(decimal);
    if magnitude > 30 {
        return MAX;
    }
    if magnitude < -19 {
        return 1;
    }
    // Digits beyond the 30th lie below a nano for any amount that fits: they only round up.
    let (head, tail) = digits.split_at(digits.len().min(30));
    let mut amount: i128 = head.parse().unwrap_or(MAX);
    let mut inexact = tail.bytes().any(|digit| digit != b'0');
    let mut decimal = decimal.saturating_add(tail.len() as i32);
    // Divide before shifting only what shifting would overflow; both orders are exact but for `inexact`.
    let mut shift = binary;
    while shift > 0 {
        match amount.checked_mul(2) {
            Some(doubled) => amount = doubled,
            None if decimal < 0 => {
                inexact |= amount % 10 != 0;
                amount /= 10;
                decimal += 1;
                continue;
            }
            None => return MAX,
        }
        shift -= 1;
    }
    for _ in 0..decimal {
        match amount.checked_mul(10) {
            Some(larger) => amount = larger,
            None => return MAX,
        }
    }
    for _ in decimal..0 {
        inexact |= amount % 10 != 0;
        amount /= 10;
    }
    amount + i128::from(inexact)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let whole = self.nanos / NANO;
        let binary = self.format == Format::BinarySi && self.nanos % NANO == 0 && whole.abs() >= 1024;
        if binary {
            let step = (1..=6).rev().find(|step| whole % (1 << (10 * step)) == 0).unwrap_or(0);
            return write!(f, "{}{}", whole >> (10 * step), ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][step]);
        }
        let (mut mantissa, mut exponent) = (self.nanos, -9i32);
        while mantissa % 1000 == 0 && exponent < 18 {
            mantissa /= 1000;
            exponent += 3;
        }
        match self.format {
            Format::DecimalExponent if exponent == 0 => write!(f, "{mantissa}"),
            Format::DecimalExponent => write!(f, "{mantissa}e{exponent}"),
            _ => {
                let suffix = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][(exponent / 3 + 3) as usize];
                write!(f, "{mantissa}{suffix}")
            }
        }
    }
}

impl FromStr for Quantity {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl std::hash::Hash for Quantity {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.nanos.hash(state);
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.with(self.nanos + other.nanos, other)
    }
}

impl Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.with(self.nanos - other.nanos, other)
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Neg for Quantity {
    type Output = Self;
    fn neg(self) -> Self {
        Self { nanos: -self.nanos, ..self }
    }
}

impl Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::ZERO, Add::add)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    /// A string, or a bare number as manifests write it.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let text = match &value {
            serde_json::Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        Self::parse(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_are_canonical() {
        for (text, canonical) in [
            ("0", "0"),
            ("0Gi", "0"),
            ("1", "1"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1.5", "1500m"),
            ("100m", "100m"),
            ("0.5Gi", "512Mi"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1023", "1023"),
            ("512", "512"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("1000k", "1M"),
            ("123456k", "123456k"),
            ("1e3", "1e3"),
            ("100e3", "100e3"),
            ("1E6", "1e6"),
            ("1E", "1E"),
            ("5e-3", "5e-3"),
            ("0.1e3", "100"),
            ("-5m", "-5m"),
            ("+1", "1"),
            (".5", "500m"),
            ("1.", "1"),
            ("0.0000000001", "1n"),
            ("1.0000000001", "1000000001n"),
            ("0.1Mi", "104857600m"),
            ("9223372036854775808", "9223372036854775807"),
            ("1e100", "9223372036854775807"),
            ("8Ei", "9223372036854775807"),
            ("1e-100", "1e-9"),
        ] {
            let quantity = Quantity::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(quantity.to_string(), canonical, "{text}");
            assert_eq!(Quantity::parse(canonical).unwrap(), quantity);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        use ParseError::{Format, Suffix};
        for (text, error) in [
            ("", Format),
            ("-", Format),
            ("Gi", Format),
            ("1.2.3", Format),
            ("1x", Format),
            (" 1", Format),
            ("1ki", Suffix),
            ("1mm", Suffix),
            ("1e", Suffix),
            ("1Gi5", Suffix),
        ] {
            assert_eq!(Quantity::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn arithmetic_rounds_up_and_keeps_the_family() {
        let quantity = |text| Quantity::parse(text).unwrap();
        assert_eq!(quantity("1.1").value(), 2);
        assert_eq!(quantity("-1.1").value(), -1);
        assert_eq!(quantity("1.0001").milli_value(), 1001);
        assert_eq!((quantity("1Gi") + quantity("1Mi")).to_string(), "1025Mi");
        assert_eq!((quantity("1") - quantity("300m")).to_string(), "700m");
        assert_eq!([quantity("1Gi"), quantity("1Gi")].into_iter().sum::<Quantity>().to_string(), "2Gi");
        assert!(quantity("1Gi") > quantity("1G"));
        assert_eq!(quantity("1"), quantity("1000m"));
        assert_eq!(serde_json::from_str::<Quantity>("1.5").unwrap(), quantity("1500m"));
    }
}
