//! Which pod has which address: one file per sandbox, so that a crash loses nothing.
//!
//! Addresses are handed out in a round, as upstream's host-local plugin does, so that a freed one
//! is not reused while others still remember it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::PortMapping;

/// An IPv4 range in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub base: Ipv4Addr,
    pub prefix: u8,
}

impl std::str::FromStr for Range {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let parsed = text.split_once('/').and_then(|(base, prefix)| Some((base.parse().ok()?, prefix.parse().ok()?)));
        match parsed {
            Some((base, prefix)) if prefix <= 30 => Ok(Range { base, prefix }.normalised()),
            _ => bail!("{text:?} is not an IPv4 range such as 10.42.0.0/24, with a prefix of at most 30"),
        }
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl Range {
    fn normalised(self) -> Self {
        Range { base: Ipv4Addr::from_bits(self.base.to_bits() & self.mask()), ..self }
    }

    pub fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    /// The bridge's own address: the first usable one.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() + 1)
    }

    /// The addresses for pods: without network, gateway and broadcast.
    fn pods(&self) -> std::ops::Range<u32> {
        self.base.to_bits() + 2..(self.base.to_bits() | !self.mask())
    }
}

/// What a sandbox holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    pub address: Ipv4Addr,
    pub ports: Vec<PortMapping>,
}

/// The allocations of one node.
pub struct Addresses {
    directory: PathBuf,
    held: BTreeMap<String, Allocation>,
    last: u32,
}

impl Addresses {
    /// Reads what an earlier process has handed out.
    pub fn open(directory: &Path) -> anyhow::Result<Addresses> {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let mut held = BTreeMap::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let Some(sandbox) =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"))
            else {
                continue;
            };
            let read = fs::read(&path).map_err(anyhow::Error::from).and_then(|text| Ok(serde_json::from_slice(&text)?));
            held.insert(
                sandbox.to_owned(),
                read.with_context(|| format!("read address file {}; remove it if it is damaged", path.display()))?,
            );
        }
        let last = held.values().map(|allocation: &Allocation| allocation.address.to_bits()).max().unwrap_or(0);
        Ok(Addresses { directory: directory.to_owned(), held, last })
    }

    pub fn get(&self, sandbox: &str) -> Option<&Allocation> {
        self.held.get(sandbox)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Allocation)> {
        self.held.iter()
    }

    /// The sandbox's allocation, made if it has none.
    pub fn allocate(&mut self, range: Range, sandbox: &str, ports: &[PortMapping]) -> anyhow::Result<Allocation> {
        if let Some(allocation) = self.held.get(sandbox) {
            return Ok(allocation.clone());
        }
        let taken: BTreeSet<u32> = self.held.values().map(|allocation| allocation.address.to_bits()).collect();
        let all = range.pods();
        let start = if all.contains(&(self.last + 1)) { self.last + 1 } else { all.start };
        let free = (start..all.end).chain(all.start..start).find(|bits| !taken.contains(bits));
        let Some(bits) = free else { bail!("no IP addresses available in range {range}") };
        let allocation = Allocation { address: Ipv4Addr::from_bits(bits), ports: ports.to_vec() };
        self.write(sandbox, &allocation)
            .with_context(|| format!("record address {} of sandbox {sandbox}", allocation.address))?;
        self.last = bits;
        self.held.insert(sandbox.to_owned(), allocation.clone());
        Ok(allocation)
    }

    /// No error if the sandbox holds nothing.
    pub fn release(&mut self, sandbox: &str) -> anyhow::Result<()> {
        match fs::remove_file(self.path(sandbox)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("forget address of sandbox {sandbox}"));
            }
            _ => {}
        }
        self.held.remove(sandbox);
        Ok(())
    }

    fn write(&self, sandbox: &str, allocation: &Allocation) -> anyhow::Result<()> {
        let temporary = self.directory.join(format!("{sandbox}.part"));
        fs::write(&temporary, serde_json::to_vec(allocation)?)?;
        Ok(fs::rename(temporary, self.path(sandbox))?)
    }

    fn path(&self, sandbox: &str) -> PathBuf {
        self.directory.join(format!("{sandbox}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        text.parse().unwrap()
    }

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            Scratch(std::env::temp_dir().join(format!("isopod-addresses-{}-{name}", std::process::id())))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn ranges() {
        let parsed = range("10.42.3.7/24");
        assert_eq!((parsed.to_string(), parsed.gateway().to_string()), ("10.42.3.0/24".into(), "10.42.3.1".into()));
        for wrong in ["10.42.0.0", "10.42.0.0/31", "x/24", "fd00::/64"] {
            assert!(wrong.parse::<Range>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_go_round_and_survive_a_restart() {
        let scratch = Scratch::new("round");
        let range = range("10.42.0.0/29");
        let mut addresses = Addresses::open(&scratch.0).unwrap();
        let mut take = |sandbox: &str| addresses.allocate(range, sandbox, &[]).map(|a| a.address.octets()[3]);
        assert_eq!([take("a").unwrap(), take("b").unwrap(), take("a").unwrap()], [2, 3, 2]);
        addresses.release("a").unwrap();
        addresses.release("a").unwrap();

        let mut addresses = Addresses::open(&scratch.0).unwrap();
        let mut take = |sandbox: &str| addresses.allocate(range, sandbox, &[]).map(|a| a.address.octets()[3]);
        assert_eq!([take("c").unwrap(), take("d").unwrap(), take("e").unwrap(), take("f").unwrap()], [4, 5, 6, 2]);
        assert_eq!(take("g").unwrap_err().to_string(), "no IP addresses available in range 10.42.0.0/29");
        assert_eq!(addresses.get("b").unwrap().address, Ipv4Addr::new(10, 42, 0, 3));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let scratch = Scratch::new("damaged");
        fs::create_dir_all(&scratch.0).unwrap();
        fs::write(scratch.0.join("x.json"), "{").unwrap();
        let error = Addresses::open(&scratch.0).err().unwrap().to_string();
        assert!(error.contains("x.json"), "{error}");
    }
}
