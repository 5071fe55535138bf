//! Durable transactions per second: `cargo run --example throughput [DIR]`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use store::{FjallStore, KeyRange, Options, Range, Store, Txn, Write};

const VALUE: usize = 1_024;
const RUN: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let base = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(base)?;
    let store = Arc::new(FjallStore::open(dir.path(), Options::default())?);
    for callers in [1, 32, 128] {
        let start = Instant::now();
        let tasks: Vec<_> = (0..callers).map(|n| tokio::spawn(write(store.clone(), n))).collect();
        let mut total = 0;
        for task in tasks {
            total += task.await?;
        }
        let rate = f64::from(total) / start.elapsed().as_secs_f64();
        println!("{callers:4} callers: {rate:7.0} txn/s, {} MiB resident", resident()? >> 20);
    }
    store.close().await?;
    let start = Instant::now();
    let store = FjallStore::open(dir.path(), Options::default())?;
    println!("opened again in {:?}", start.elapsed());
    let start = Instant::now();
    let all = Range { range: KeyRange::prefix(""), revision: None, limit: 0, count_only: false };
    let count = store.range(all).await?.count;
    println!("{count} keys listed in {:?}, {} MiB resident", start.elapsed(), resident()? >> 20);
    store.close().await?;
    Ok(())
}

/// Half of the writes are updates.
async fn write(store: Arc<FjallStore>, caller: u32) -> u32 {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < RUN {
        let key = format!("/registry/pods/default/pod-{caller}-{}", count / 2).into();
        let put = Write::Put { key, value: vec![b'x'; VALUE].into(), lease: 0 };
        let txn = Txn { compares: vec![], writes: vec![put] };
        store.txn(txn).await.expect("the store writes");
        count += 1;
    }
    count
}

fn resident() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/statm")?;
    let pages = status.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    Ok(pages.unwrap_or(0) * 4_096)
}
