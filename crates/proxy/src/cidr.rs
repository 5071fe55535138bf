//! Address ranges in CIDR notation, of both families.

use std::net::IpAddr;
use std::str::FromStr;

use crate::rules::Family;

/// A range; the address is its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    base: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// `None` if the prefix is longer than an address of the family.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Cidr> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= bits).then(|| {
            let mask = mask(bits, prefix);
            let base = match address {
                IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & mask as u32).into()),
                IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & mask).into()),
            };
            Cidr { base, prefix }
        })
    }

    /// The range of one address.
    pub fn host(address: IpAddr) -> Cidr {
        Cidr { base: address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Ranges separated by commas, as flags have them; none in an empty text.
    pub fn parse_list(text: &str) -> anyhow::Result<Vec<Cidr>> {
        text.split(',').map(str::trim).filter(|range| !range.is_empty()).map(str::parse).collect()
    }

    pub fn family(self) -> Family {
        Family::of(self.base)
    }

    pub fn contains(self, address: IpAddr) -> bool {
        Cidr::new(address, self.prefix).is_some_and(|range| range == self)
    }

    /// The first address and the mask, in network byte order.
    pub(crate) fn octets(self) -> (Vec<u8>, Vec<u8>) {
        match self.base {
            IpAddr::V4(v4) => (v4.octets().to_vec(), (mask(32, self.prefix) as u32).to_be_bytes().to_vec()),
            IpAddr::V6(v6) => (v6.octets().to_vec(), mask(128, self.prefix).to_be_bytes().to_vec()),
        }
    }
}

fn mask(bits: u8, prefix: u8) -> u128 {
    let ones = u128::MAX.checked_shl(u32::from(bits - prefix)).unwrap_or(0);
    if bits == 32 { ones & u128::from(u32::MAX) } else { ones }
}

impl FromStr for Cidr {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let parsed =
            text.split_once('/').and_then(|(address, prefix)| Cidr::new(address.parse().ok()?, prefix.parse().ok()?));
        parsed.ok_or_else(|| anyhow::anyhow!("{text:?} is not an address range such as 10.42.0.0/16"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_contain_their_family_only() {
        for (range, address, inside) in [
            ("10.42.3.9/16", "10.42.200.1", true),
            ("10.42.0.0/16", "10.43.0.1", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("0.0.0.0/0", "::1", false),
            ("fd00:1::/32", "fd00:1:2::3", true),
            ("fd00:1::/32", "fd00:2::3", false),
            ("10.0.0.7/32", "10.0.0.7", true),
        ] {
            assert_eq!(range.parse::<Cidr>().unwrap().contains(address.parse().unwrap()), inside, "{range} {address}");
        }
        for wrong in ["10.42.0.0", "10.42.0.0/33", "x/8", "::/129"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
        assert_eq!(Cidr::parse_list("10.0.0.0/8, fd00::/8").unwrap().len(), 2);
        assert_eq!("10.42.3.9/16".parse::<Cidr>().unwrap().octets(), (vec![10, 42, 0, 0], vec![255, 255, 0, 0]));
    }
}
