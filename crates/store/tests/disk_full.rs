//! A full disk: errors, nothing lost, and recovery once there is room. On a small tmpfs in a mount
//! namespace of the test's own thread, which needs root.

mod common;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use common::{all, delete, get, put, try_put, watch};
use futures::StreamExt;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use store::{Error, FjallStore, Options, Store};

const MIB: usize = 1 << 20;

/// Runs the test on a disk of `size` MiB. The namespace ends with the thread, the disk with it.
fn on_small_disk(size: usize, test: impl AsyncFnOnce(&Path) + Send + 'static) {
    let run = move || {
        match unshare(CloneFlags::CLONE_NEWNS) {
            Err(Errno::EPERM) => return eprintln!("skipped: mounting needs root"),
            outcome => outcome.unwrap(),
        }
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}m");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(&options[..])).unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test(dir.path()));
        nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    };
    std::thread::spawn(run).join().unwrap();
}

/// Takes up all space but `leave` bytes.
fn fill(dir: &Path, leave: usize) -> PathBuf {
    let path = dir.join("ballast");
    let mut file = File::create(&path).unwrap();
    while file.write(&[0; 1 << 16]).is_ok_and(|n| n > 0) {}
    let length = file.metadata().unwrap().len();
    file.set_len(length - leave as u64).unwrap();
    path
}

/// 8 KiB that do not compress.
fn value(seed: usize) -> String {
    let next =
        |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
    let random = std::iter::successors(Some(seed as u64), next);
    random.skip(1).take(512).map(|state| format!("{state:016x}")).collect()
}

#[test]
fn below_the_reserve_puts_are_refused_and_deletions_are_not() {
    on_small_disk(64, async |dir| {
        let options = Options { reserve_bytes: 16 << 20, ..Options::default() };
        let store = FjallStore::open(dir.join("store"), options.clone()).unwrap();
        put(&store, "/a", "1").await;
        put(&store, "/b", "1").await;
        let ballast = fill(dir, 8 * MIB);
        let error = try_put(&store, "/c", "1").await.unwrap_err();
        assert!(error.to_string().contains("is full: 8 MiB free, 16 MiB needed"), "{error}");
        let source = error.source().unwrap().downcast_ref::<std::io::Error>();
        assert_eq!(source.map(|source| source.kind()), Some(std::io::ErrorKind::StorageFull));
        let last = delete(&store, "/b").await;
        assert_eq!(get(&store, "/a").await.unwrap().value, "1");
        fs::remove_file(ballast).unwrap();
        assert_eq!(put(&store, "/c", "2").await, last + 1);
        store.close().await.unwrap();
        let store = FjallStore::open(dir.join("store"), options).unwrap();
        assert_eq!(store.range(all()).await.unwrap().count, 2);
        store.close().await.unwrap();
    });
}

#[test]
fn a_write_that_met_the_end_of_the_disk_harms_no_other() {
    on_small_disk(32, async |dir| {
        let options = Options { reserve_bytes: 0, memtable_bytes: 1 << 20, ..Options::default() };
        let store = FjallStore::open(dir.join("store"), options.clone()).unwrap();
        let mut feed = watch(&store, 1).await;
        feed.next().await.unwrap().unwrap();
        let mut acknowledged = BTreeMap::new();
        let mut failures = 0;
        let mut ballast = None;
        for n in 0..2_000 {
            if n == 100 {
                ballast = Some(fill(dir, 2 * MIB));
            }
            match try_put(&store, &format!("/{n:04}"), &value(n)).await {
                Ok(revision) => assert_eq!(acknowledged.insert(revision, n), None, "revision {revision} came twice"),
                Err(error) => {
                    assert!(matches!(error, Error::Io { .. }), "{error}");
                    failures += 1;
                }
            }
            if failures == 5 {
                break;
            }
        }
        assert_eq!(failures, 5, "the disk never filled");
        let before = acknowledged.len();
        fs::remove_file(ballast.unwrap()).unwrap();
        common::wait_for(async || try_put(&store, "/back", "").await.is_ok()).await;
        for n in 2_000..2_050 {
            acknowledged.insert(put(&store, &format!("/{n:04}"), &value(n)).await, n);
        }
        assert_eq!(acknowledged.len(), before + 50);

        // The watch, begun before, saw every revision once.
        let last = store.revision().await.unwrap();
        let mut seen = vec![];
        while seen.last() != Some(&last) {
            let batch = feed.next().await.unwrap().unwrap();
            seen.extend(batch.events.iter().map(|event| event.revision()));
        }
        assert_eq!(seen, (2..=last).collect::<Vec<_>>());
        store.close().await.unwrap();
        let store = FjallStore::open(dir.join("store"), options).unwrap();
        for (revision, n) in acknowledged {
            let kv = get(&store, &format!("/{n:04}")).await.unwrap();
            assert_eq!((kv.mod_revision, &kv.value[..]), (revision, value(n).as_bytes()));
        }
        store.close().await.unwrap();
    });
}
