//! Ranges of addresses, of either family: what validation compares, and what Services get their addresses from.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::str::FromStr;

use machinery::field::Path;
use machinery::names;

use crate::validate::Errors;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u32,
}

/// The network alone: bits behind the prefix are dropped.
impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Cidr, String> {
        let wrong = || format!("{text:?} is no network such as 10.43.0.0/16");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let cidr =
            Cidr { address: address.parse().map_err(|_| wrong())?, prefix: prefix.parse().map_err(|_| wrong())? };
        if cidr.prefix > cidr.width() {
            return Err(wrong());
        }
        Ok(Cidr { address: cidr.address(cidr.first()), ..cidr })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Cidr {
    /// Reports what is no CIDR.
    pub fn check(text: &str, path: &Path, errors: &mut Errors) -> Option<Cidr> {
        let wrong = names::is_valid_cidr(text);
        errors.all_invalid(path, text, wrong);
        let (address, prefix) = text.split_once('/')?;
        Some(Cidr { address: address.parse().ok()?, prefix: prefix.parse().ok()? })
    }

    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    pub fn prefix(&self) -> u32 {
        self.prefix
    }

    /// No bit is set behind the prefix.
    pub fn is_canonical(&self) -> bool {
        bits(self.address) == self.first()
    }

    /// `other` lies inside, or is the same.
    pub fn contains(&self, other: &Cidr) -> bool {
        self.prefix <= other.prefix && self.overlaps(other)
    }

    /// `other` lies inside and is smaller.
    pub fn strictly_contains(&self, other: &Cidr) -> bool {
        self.prefix < other.prefix && self.overlaps(other)
    }

    /// One lies inside the other.
    pub fn overlaps(&self, other: &Cidr) -> bool {
        let mask = self.mask() & other.mask();
        self.width() == other.width() && bits(self.address) & mask == bits(other.address) & mask
    }

    /// Whether a Service may get the address from here: never the network's own, nor the last of IPv4, which is the
    /// broadcast address.
    pub fn gives(&self, address: IpAddr) -> bool {
        let number = bits(address).wrapping_sub(self.first());
        self.is_ipv4() == address.is_ipv4() && (1..self.end()).contains(&number)
    }

    /// The numbers of the addresses that Services may get. Of huge networks the first 2^64.
    pub fn hosts(&self) -> Range<u64> {
        1..u64::try_from(self.end()).unwrap_or(u64::MAX)
    }

    fn end(&self) -> u128 {
        let size = 1u128.checked_shl(self.width() - self.prefix).unwrap_or(u128::MAX);
        size - u128::from(self.is_ipv4())
    }

    /// The nth address; 0 is the network's own.
    pub fn nth(&self, n: u64) -> IpAddr {
        self.address(self.first() + u128::from(n))
    }

    fn first(&self) -> u128 {
        bits(self.address) & self.mask()
    }

    fn width(&self) -> u32 {
        if self.is_ipv4() { 32 } else { 128 }
    }

    fn mask(&self) -> u128 {
        let all = u128::MAX >> (128 - self.width());
        all & !all.checked_shr(self.prefix).unwrap_or(0)
    }

    /// The address of this family with these bits.
    fn address(&self, bits: u128) -> IpAddr {
        match self.address {
            IpAddr::V4(_) => Ipv4Addr::from(bits as u32).into(),
            IpAddr::V6(_) => Ipv6Addr::from(bits).into(),
        }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        Cidr::check(text, &Path::new("x"), &mut Errors::default()).expect(text)
    }

    #[test]
    fn containment() {
        for (outer, inner, contains, strictly, overlaps) in [
            ("10.0.0.0/8", "10.1.0.0/16", true, true, true),
            ("10.0.0.0/8", "10.0.0.0/8", true, false, true),
            ("10.1.0.0/16", "10.0.0.0/8", false, false, true),
            ("10.0.0.0/8", "11.0.0.0/16", false, false, false),
            ("0.0.0.0/0", "1.2.3.4/32", true, true, true),
            ("0.0.0.0/0", "fd00::/64", false, false, false),
            ("::/0", "fd00::/64", true, true, true),
        ] {
            let (outer, inner) = (cidr(outer), cidr(inner));
            let got = (outer.contains(&inner), outer.strictly_contains(&inner), outer.overlaps(&inner));
            assert_eq!(got, (contains, strictly, overlaps), "{outer} {inner}");
        }
        assert!(cidr("10.0.0.0/8").is_canonical() && cidr("1.2.3.4/32").is_canonical());
        assert!(!cidr("10.0.0.1/8").is_canonical());
    }

    #[test]
    fn addresses_for_services() {
        for (range, end, gives, gives_not) in [
            ("10.43.0.0/29", 7, &["10.43.0.1", "10.43.0.6"][..], &["10.43.0.0", "10.43.0.7", "10.43.0.8"][..]),
            ("10.43.0.0/31", 1, &[], &["10.43.0.0", "10.43.0.1"]),
            ("10.43.0.0/32", 0, &[], &["10.43.0.0"]),
            ("0.0.0.0/0", 0xffff_ffff, &["10.43.0.0", "255.255.255.254"], &["0.0.0.0", "255.255.255.255", "::1"]),
            ("fd00::/126", 4, &["fd00::1", "fd00::3"], &["fd00::", "fd00::4", "10.43.0.1"]),
            ("fd00::/56", u64::MAX, &["fd00::1", "fd00:0:0:ff::"], &["fd00:0:0:100::"]),
            ("::/0", u64::MAX, &["::1"], &["::"]),
        ] {
            let cidr: Cidr = range.parse().unwrap();
            assert_eq!(cidr.hosts(), Range { start: 1, end }, "{range}");
            let given = |text: &&&str| cidr.gives(text.parse().unwrap());
            assert_eq!(gives.iter().filter(given).count(), gives.len(), "{range} gives {gives:?}");
            assert_eq!(gives_not.iter().filter(given).count(), 0, "{range} gives none of {gives_not:?}");
        }
    }

    #[test]
    fn a_network_is_told_without_its_host() {
        let cidr: Cidr = "10.43.3.9/16".parse().unwrap();
        assert_eq!((cidr.to_string(), cidr.nth(258).to_string()), ("10.43.0.0/16".into(), "10.43.1.2".into()));
        assert_eq!("fd00::9/64".parse::<Cidr>().unwrap().nth(1).to_string(), "fd00::1");
        for text in ["10.43.0.0", "10.43.0.0/33", "fd00::/129", "a/16", "10.43.0.0/-1"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
