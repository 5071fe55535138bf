//! Cuts a torn batch off the end of fjall's journal.
//!
//! A power loss may leave the pages of the last, unacknowledged batch on disk in any combination.
//! fjall cuts a batch that ends early, but refuses to open when one looks complete and is not.
//! Such a batch is cut here, provided that nothing valid follows it: then it is the last, and
//! nobody was told that it succeeded. Anything else is damage, and is left alone.
//!
//! It knows fjall's journal framing (format 3) and nothing of what the batches mean.

use std::fs::{self, File};
use std::hash::Hasher;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

/// Whether there was one.
pub fn cut_torn_tail(database: &Path) -> io::Result<bool> {
    let Some(path) = active(database)? else { return Ok(false) };
    let bytes = fs::read(&path)?;
    let end = batches(&bytes);
    let torn = &bytes[end..];
    // fjall fills the file with zeros beforehand.
    let written = torn.iter().any(|byte| *byte != 0);
    if !written || (1..torn.len()).any(|at| batch(&torn[at..]).is_some()) {
        return Ok(false);
    }
    let file = File::options().write(true).open(&path)?;
    file.set_len(end as u64)?;
    file.sync_all()?;
    Ok(true)
}

/// The journal being written is the one with the highest number.
pub fn active(database: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in fs::read_dir(database)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|e| e == "jnl")) {
            newest = newest.max(Some((number, path)));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// Where the valid batches at the front end.
fn batches(bytes: &[u8]) -> usize {
    let mut end = 0;
    while let Some(length) = batch(&bytes[end..]) {
        end += length;
    }
    end
}

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: &[u8] = b"FJL\x03";

/// Length of the valid batch at the front.
fn batch(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    let [START] = take::<1>(&mut rest)? else { return None };
    let count = u32::from_le_bytes(take(&mut rest)?);
    take::<8>(&mut rest)?;
    let mut checksum = Xxh3::new();
    for _ in 0..count {
        let length = item(rest)?;
        let (item, after) = rest.split_at_checked(length)?;
        checksum.write(item);
        rest = after;
    }
    let [END] = take::<1>(&mut rest)? else { return None };
    let whole = u64::from_le_bytes(take(&mut rest)?) == checksum.finish();
    let rest = rest.strip_prefix(TRAILER)?;
    whole.then(|| bytes.len() - rest.len())
}

/// Length that the item at the front claims.
fn item(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    match take::<1>(&mut rest)? {
        [CLEAR] => Some(1 + 8),
        [ITEM] => {
            // Kind of value, compression, keyspace.
            take::<10>(&mut rest)?;
            let key = u16::from_le_bytes(take(&mut rest)?);
            take::<4>(&mut rest)?;
            let value = u32::from_le_bytes(take(&mut rest)?);
            Some(bytes.len() - rest.len() + usize::from(key) + value as usize)
        }
        _ => None,
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (field, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*field)
}
