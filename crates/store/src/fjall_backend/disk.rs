//! The directory: who may open it, how the database in it is made, and when it is refused.
//!
//! The database is made under another name and renamed when complete, because fjall cannot reopen
//! one whose creation was cut short. Our own lock file beside it names the process that holds it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable};

use super::{Options, journal, layout};
use crate::Error;

const DATABASE: &str = "db";
const UNFINISHED: &str = "db.new";
const LOCK: &str = "in-use";

/// Why a directory cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the store in {} is in use by {holder}", dir.display())]
    Locked { dir: PathBuf, holder: String },
    #[error("the store in {} is damaged ({what}); restore the directory from a backup", dir.display())]
    Damaged { dir: PathBuf, what: String },
    #[error("the store in {} has format {found}, this version reads {}", dir.display(), layout::FORMAT_VERSION)]
    Format { dir: PathBuf, found: i64 },
    #[error("open the store in {}", dir.display())]
    Io { dir: PathBuf, source: io::Error },
}

/// Holds the directory for one process; released when dropped or when the process ends, however.
pub struct DirectoryLock(#[expect(dead_code, reason = "the open file is the lock")] File);

impl DirectoryLock {
    pub fn take(dir: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { dir: dir.to_owned(), source };
        // Secrets lie in here.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
        let mut options = File::options();
        let path = dir.join(LOCK);
        let mut file = options.create(true).truncate(false).read(true).write(true).open(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(source)) => return Err(io(source)),
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                let holder = match pid.trim() {
                    "" => "another process".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(OpenError::Locked { dir: dir.to_owned(), holder });
            }
        }
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id())).or_else(
            |error| match error.kind() {
                // The name is a courtesy; a full disk must not keep the store from opening.
                io::ErrorKind::StorageFull => Ok(()),
                _ => Err(io(error)),
            },
        )?;
        Ok(DirectoryLock(file))
    }
}

/// The open database. Shared by the writer and every read in progress.
pub struct Disk {
    pub database: Database,
    pub current: Keyspace,
    pub history: Keyspace,
    pub meta: Keyspace,
}

impl Disk {
    /// Opens or creates the database; the caller holds the [`DirectoryLock`].
    pub fn open(dir: &Path, options: &Options) -> Result<Arc<Self>, OpenError> {
        let path = dir.join(DATABASE);
        if !path.exists() {
            create(dir, &path, options).map_err(|error| explain(dir, error))?;
        }
        let open = || guarded(|| Self::recover(&path, options));
        let disk = open().or_else(|error| match journal::cut_torn_tail(&path) {
            Ok(true) => open(),
            _ => Err(error),
        });
        let disk = disk.map_err(|error| explain(dir, error))?;
        match disk.number(layout::FORMAT).map_err(|error| explain(dir, error))? {
            Some(layout::FORMAT_VERSION) => Ok(Arc::new(disk)),
            Some(found) => Err(OpenError::Format { dir: dir.to_owned(), found }),
            None => Err(OpenError::Damaged { dir: dir.to_owned(), what: "it has no format mark".into() }),
        }
    }

    /// A batch that is on disk for good once committed.
    pub fn batch(&self) -> OwnedWriteBatch {
        self.database.batch().durability(Some(PersistMode::SyncData))
    }

    /// Waits while flushing lags behind. fjall would wait within the commit, and forever if its
    /// worker has died meanwhile.
    pub fn await_flushes(&self) -> fjall::Result<()> {
        let lags = |keyspace: &&Keyspace| keyspace.sealed_memtable_count() > 2 || keyspace.l0_table_count() > 24;
        while [&self.current, &self.history, &self.meta].iter().any(lags) {
            // Fails once the worker has.
            self.database.persist(PersistMode::Buffer)?;
            pause();
        }
        Ok(())
    }

    /// The number under a key of `meta`.
    pub fn number(&self, key: &[u8]) -> fjall::Result<Option<i64>> {
        let bytes = self.database.snapshot().get(&self.meta, key)?;
        bytes.map(|bytes| layout::parse_number(&bytes).map_err(malformed)).transpose()
    }

    /// fjall makes anew what it misses, tree or journal, and calls it recovered. Since ours was
    /// complete when it got its name, whatever is missing is damage.
    fn recover(path: &Path, options: &Options) -> fjall::Result<Self> {
        if journal::active(path)?.is_none() || !path.join("version").exists() {
            return Err(damage("its journal or version mark is missing".into()));
        }
        let database = builder(path, options).open()?;
        let names = [layout::CURRENT, layout::HISTORY, layout::META];
        if let Some(missing) = names.into_iter().find(|name| !database.keyspace_exists(name)) {
            return Err(damage(format!("keyspace {missing} is missing")));
        }
        Self::keyspaces(database, options)
    }

    fn keyspaces(database: Database, options: &Options) -> fjall::Result<Self> {
        let keyspace = |name, memtable_bytes| {
            database.keyspace(name, || KeyspaceCreateOptions::default().max_memtable_size(memtable_bytes))
        };
        Ok(Disk {
            current: keyspace(layout::CURRENT, options.memtable_bytes / 2)?,
            history: keyspace(layout::HISTORY, options.memtable_bytes)?,
            meta: keyspace(layout::META, options.memtable_bytes / 8)?,
            database,
        })
    }
}

fn builder(path: &Path, options: &Options) -> fjall::DatabaseBuilder<Database> {
    // One worker: with two, fjall hands compactions back and forth while one runs.
    Database::builder(path).cache_size(options.cache_bytes).worker_threads(1)
}

fn create(dir: &Path, path: &Path, options: &Options) -> fjall::Result<()> {
    let unfinished = dir.join(UNFINISHED);
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    let disk = Disk::keyspaces(builder(&unfinished, options).open()?, options)?;
    let mut batch = disk.batch();
    batch.insert(&disk.meta, layout::FORMAT, layout::FORMAT_VERSION.to_be_bytes());
    batch.commit()?;
    disk.database.persist(PersistMode::SyncAll)?;
    drop(disk);
    fs::rename(&unfinished, path)?;
    File::open(dir)?.sync_all()?;
    Ok(())
}

/// fjall panics on some damage; that is an answer about the directory, not about this program.
fn guarded(open: impl FnOnce() -> fjall::Result<Disk>) -> fjall::Result<Disk> {
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(damage(text.unwrap_or("unreadable").to_owned()))
    })
}

fn explain(dir: &Path, error: fjall::Error) -> OpenError {
    let dir = dir.to_owned();
    let holder = || "another process".to_owned();
    match error {
        fjall::Error::Locked => OpenError::Locked { dir, holder: holder() },
        fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source)) if is_outside(&source) => {
            OpenError::Io { dir, source }
        }
        fjall::Error::Io(what) | fjall::Error::Storage(fjall::LsmError::Io(what)) => {
            OpenError::Damaged { dir, what: what.to_string() }
        }
        error => OpenError::Damaged { dir, what: format!("{error:?}") },
    }
}

/// Whether the trouble lies with the system rather than with the bytes.
fn is_outside(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    error.raw_os_error().is_some() && !matches!(error.kind(), NotFound | UnexpectedEof | InvalidData)
}

fn damage(what: String) -> fjall::Error {
    fjall::Error::Io(io::Error::new(io::ErrorKind::InvalidData, what))
}

fn malformed(error: layout::Malformed) -> fjall::Error {
    fjall::Error::Io(io::Error::new(io::ErrorKind::InvalidData, error))
}

/// For the writer's own thread, where fjall offers nothing to wait on.
#[expect(clippy::disallowed_methods, reason = "no executor runs on the writer's thread")]
pub fn pause() {
    std::thread::sleep(Duration::from_millis(1));
}

/// Puts what failed in front of fjall's error.
pub fn failed(operation: &'static str) -> impl Fn(fjall::Error) -> Error {
    move |error| {
        let source: Box<dyn std::error::Error + Send + Sync> = match error {
            fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => error.into(),
            error => error.into(),
        };
        Error::Io { operation, source }
    }
}
