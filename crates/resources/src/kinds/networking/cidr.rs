//! Ranges of addresses, as far as validation compares them.

use std::net::IpAddr;

use machinery::field::Path;
use machinery::names;

use crate::validate::Errors;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u32,
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

    /// No bit is set behind the prefix.
    pub fn is_canonical(&self) -> bool {
        let (bits, width) = bits(self.address);
        bits & !mask(self.prefix, width) == 0
    }

    /// `other` lies inside and is smaller.
    pub fn strictly_contains(&self, other: &Cidr) -> bool {
        let ((own, width), (others, other_width)) = (bits(self.address), bits(other.address));
        let mask = mask(self.prefix, width);
        width == other_width && self.prefix < other.prefix && own & mask == others & mask
    }
}

fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(address) => (u32::from(address).into(), 32),
        IpAddr::V6(address) => (address.into(), 128),
    }
}

fn mask(prefix: u32, width: u32) -> u128 {
    let all = u128::MAX >> (128 - width);
    all & !all.checked_shr(prefix).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containment() {
        let cidr = |text: &str| Cidr::check(text, &Path::new("x"), &mut Errors::default()).expect(text);
        for (outer, inner, expected) in [
            ("10.0.0.0/8", "10.1.0.0/16", true),
            ("10.0.0.0/8", "10.0.0.0/8", false),
            ("10.1.0.0/16", "10.0.0.0/8", false),
            ("10.0.0.0/8", "11.0.0.0/16", false),
            ("0.0.0.0/0", "1.2.3.4/32", true),
            ("0.0.0.0/0", "fd00::/64", false),
            ("::/0", "fd00::/64", true),
        ] {
            assert_eq!(cidr(outer).strictly_contains(&cidr(inner)), expected, "{outer} {inner}");
        }
        assert!(cidr("10.0.0.0/8").is_canonical() && cidr("1.2.3.4/32").is_canonical());
        assert!(!cidr("10.0.0.1/8").is_canonical());
    }
}
