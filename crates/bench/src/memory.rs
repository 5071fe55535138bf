//! Memory of processes as the kernel counts it. Private and shared pages are added for each process, so pages that two
//! processes share count for both: the sum is an upper bound, never a flattering one.

use anyhow::Context as _;

use crate::report::{Report, Row};

const MIB: f64 = 1024.0;

/// Adds a row per process, and one for their sum if there are several.
pub fn measure(pids: &[u32], when: &str, report: &mut Report) -> anyhow::Result<()> {
    let mut sum = 0.0;
    for pid in pids {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let used = resident(&text) as f64 / MIB;
        report.add(row(&format!("{} ({pid})", name.trim()), when, used));
        sum += used;
    }
    if pids.len() > 1 {
        report.add(row(&format!("{} processes", pids.len()), when, sum));
    }
    Ok(())
}

fn row(whose: &str, when: &str, mebibytes: f64) -> Row {
    Row::new(format!("memory of {whose}, private + shared"), when, "MiB", &[mebibytes], vec![])
}

/// KiB of private and shared pages in a smaps_rollup.
fn resident(smaps_rollup: &str) -> u64 {
    let lines = smaps_rollup.lines().filter(|line| line.starts_with("Private_") || line.starts_with("Shared_"));
    lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_and_shared_pages_add_up() {
        let text = "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss: 10000 kB\nPss: 5000 kB\nPss_Dirty: 1 kB\nShared_Clean: 300 kB\n\
            Shared_Dirty: 20 kB\nPrivate_Clean: 4000 kB\nPrivate_Dirty: 1 kB\nReferenced: 9 kB\nPrivate_Hugetlb: 0 kB\n";
        assert_eq!(resident(text), 4321);
    }

    #[test]
    fn this_process_uses_memory() {
        let path = format!("/proc/{}/smaps_rollup", std::process::id());
        assert!(resident(&std::fs::read_to_string(path).unwrap()) > 100);
    }
}
