//! The one thread that writes: it owns the leases, the compaction and the disk's fate.
//!
//! All requests that wait are evaluated, committed with one fsync, published to watchers and
//! readers, and then answered, in that order. After a full disk it opens the database anew, since
//! fjall refuses writes once one failed; after any other write error it stays stopped, because the
//! kernel may have dropped pages it could not write.

use std::io::ErrorKind::StorageFull;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use fjall::PersistMode;
use nix::sys::statvfs::statvfs;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::Options;
use super::disk::{DirectoryLock, Disk, OpenError, failed, pause};
use super::group::{Group, Outcome};
use super::hub::{Hub, Published};
use super::layout;
use super::lease::Leases;
use super::retention::Retention;
use super::view::View;
use crate::{Error, KeyRange, LeaseId, Revision, Txn, TxnResult, Write};

/// Requests per fsync.
const MAX_GROUP: usize = 1_024;
/// Versions removed at a time while nothing else waits.
const SCRUB: usize = 2_048;
/// Watchers learn of revisions that do not concern them this soon after the last one.
const NOTICE: Duration = Duration::from_millis(100);
/// Between attempts to recover.
const RETRY: Duration = Duration::from_secs(1);

/// Work for the writer; the permit bounds what is queued.
pub struct Request {
    pub operation: Operation,
    pub reply: oneshot::Sender<Result<Answer, Error>>,
    pub permit: OwnedSemaphorePermit,
}

pub enum Operation {
    Txn(Txn),
    Compact(Revision),
    Grant(Duration),
    KeepAlive(LeaseId),
    Revoke(LeaseId),
    Close,
}

pub enum Answer {
    Txn(TxnResult),
    Lease(LeaseId),
    Done,
}

pub struct Writer {
    dir: PathBuf,
    options: Options,
    hub: Arc<Hub>,
    requests: Receiver<Request>,
    /// `None` after a failed attempt to open the database anew.
    view: Option<Arc<View>>,
    leases: Leases,
    /// Compaction has removed what became unreachable before this revision.
    scrubbed: Revision,
    retention: Retention,
    failure: Option<Failure>,
    /// How many requests the last group had, and how long its commit took.
    pace: (usize, Duration),
    noticed: Instant,
    lock: DirectoryLock,
}

/// Why a group was not written.
struct Failure {
    text: String,
    then: Then,
}

/// What a failure means for the groups that follow.
enum Then {
    /// Nothing: the disk took no harm.
    Continue,
    /// Open the database anew, not before that moment.
    RecoverAt(Instant),
    Stop,
}

impl Writer {
    pub fn open(dir: PathBuf, options: Options, requests: Receiver<Request>) -> Result<(Self, Arc<Hub>), OpenError> {
        let lock = DirectoryLock::take(&dir)?;
        let (view, leases, scrubbed) = load(Disk::open(&dir, &options)?)
            .map_err(|error| OpenError::Damaged { dir: dir.clone(), what: describe(&error) })?;
        let hub = Arc::new(Hub::new(view.clone(), options.watch_buffer_bytes));
        let writer = Writer {
            hub: hub.clone(),
            retention: Retention::new(options.retention, options.max_revisions),
            view: Some(view),
            failure: None,
            pace: (0, Duration::ZERO),
            noticed: Instant::now(),
            dir,
            options,
            requests,
            leases,
            scrubbed,
            lock,
        };
        Ok((writer, hub))
    }

    /// Serves until closed or until the store is dropped.
    pub fn run(mut self) {
        loop {
            let wait = self.next_wake().saturating_duration_since(Instant::now());
            let first = match self.requests.recv_timeout(wait) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break self.shut_down(None),
            };
            let (group, close) = self.gather(first);
            self.serve(group);
            if close.is_some() {
                break self.shut_down(close);
            }
        }
    }

    /// Takes what waits. Callers that were answered together come back within moments of each
    /// other; waiting for them a fraction of a commit saves a commit.
    fn gather(&self, first: Option<Request>) -> (Vec<Request>, Option<Request>) {
        let (expected, commit) = self.pace;
        let deadline = Instant::now() + (commit / 4).min(Duration::from_millis(1));
        let mut group = Vec::new();
        let mut next = first;
        while let Some(request) = next {
            if matches!(request.operation, Operation::Close) {
                return (group, Some(request));
            }
            group.push(request);
            if group.len() == MAX_GROUP {
                break;
            }
            let wait = deadline.saturating_duration_since(Instant::now());
            next = match self.requests.try_recv() {
                Err(_) if group.len() < expected => self.requests.recv_timeout(wait).ok(),
                waiting => waiting.ok(),
            };
        }
        (group, None)
    }

    fn serve(&mut self, requests: Vec<Request>) {
        self.recover();
        self.pace.0 = requests.len();
        let (operations, replies): (Vec<_>, Vec<_>) =
            requests.into_iter().map(|request| (request.operation, (request.reply, request.permit))).unzip();
        let outcome = match (&self.failure, self.view.clone()) {
            (None, Some(view)) => self.commit(&view, operations),
            _ => Ok(Vec::new()),
        };
        let answers = outcome.unwrap_or_else(|failure| {
            self.failure = Some(failure);
            Vec::new()
        });
        let mut answers = answers.into_iter();
        for (reply, _permit) in replies {
            let answer = answers.next().unwrap_or_else(|| Err(self.refusal()));
            let _ = reply.send(answer);
        }
        self.failure.take_if(|failure| matches!(failure.then, Then::Continue));
        if self.hub.is_lagging() && self.noticed.elapsed() >= NOTICE {
            self.noticed = Instant::now();
            self.hub.notify();
        }
    }

    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        let unscrubbed = self.view.as_ref().is_some_and(|view| self.scrubbed < view.oldest);
        let wakes = match &self.failure {
            Some(Failure { then: Then::RecoverAt(at), .. }) => [Some(*at), None, None, None],
            Some(_) => [None; 4],
            None => [
                unscrubbed.then_some(now),
                self.leases.next_end(),
                self.retention.next(),
                self.hub.is_lagging().then(|| self.noticed + NOTICE),
            ],
        };
        wakes.into_iter().flatten().min().unwrap_or(now + Duration::from_secs(3_600))
    }

    /// Evaluates the operations and what time itself asks for, makes all durable, publishes it.
    fn commit(&mut self, view: &View, operations: Vec<Operation>) -> Result<Vec<Result<Answer, Error>>, Failure> {
        let start = Instant::now();
        let full = self.full();
        let limit = if operations.is_empty() { SCRUB } else { 64 + 2 * operations.len() };
        let mut group = Group::new(view, &mut self.leases);
        let evaluate = || {
            let mut answers = Vec::with_capacity(operations.len());
            for operation in operations {
                answers.push(match &full {
                    Some(full) if operation.puts() => Err(no_space(full)),
                    _ => match group.perform(operation, start) {
                        Err(error @ Error::Io { .. }) => return Err(error),
                        answer => answer,
                    },
                });
            }
            group.expire(start)?;
            if let Some(to) = self.retention.advance(start, group.revision(), view.oldest) {
                group.compact(to).ok();
            }
            let scrubbed = group.scrub(self.scrubbed, limit)?;
            Ok((answers, scrubbed))
        };
        let evaluated = evaluate();
        let Outcome { batch, events, revision, oldest } = group.finish();
        let (answers, scrubbed) = evaluated.map_err(|error| self.abandon(view, &error))?;
        if !batch.is_empty() {
            view.disk.await_flushes().and_then(|()| batch.commit()).map_err(|e| self.failed(e))?;
            self.pace.1 = start.elapsed();
            self.scrubbed = scrubbed;
            let view = Arc::new(View::after(view.disk.clone(), revision, oldest));
            self.view = Some(view.clone());
            self.hub.publish(view, &events);
        }
        Ok(answers)
    }

    /// Forgets a group that could not be evaluated, what it did to the leases included.
    fn abandon(&mut self, view: &View, error: &Error) -> Failure {
        let text = describe(error);
        tracing::error!(error = text, "the store could not evaluate a write");
        let then = match view.leases() {
            Ok(records) => {
                self.leases = Leases::load(&records, Instant::now());
                Then::Continue
            }
            Err(_) => Then::Stop,
        };
        Failure { text, then }
    }

    /// What a write error says, and whether the store can go on.
    fn failed(&self, error: fjall::Error) -> Failure {
        let full = matches!(&error, fjall::Error::Io(error) if error.kind() == StorageFull)
            || matches!(error, fjall::Error::Poisoned);
        let then = if full { Then::RecoverAt(Instant::now()) } else { Then::Stop };
        let text = describe(&failed("write the store")(error));
        tracing::error!(error = text, "the store cannot write");
        Failure { text, then }
    }

    fn refusal(&self) -> Error {
        let text = self.failure.as_ref().map_or("the store has stopped", |failure| &failure.text);
        Error::Io { operation: "write the store", source: text.into() }
    }

    /// After a full disk: opens the database anew as soon as there is room.
    fn recover(&mut self) {
        match self.failure {
            Some(Failure { then: Then::RecoverAt(at), .. }) if at <= Instant::now() => {}
            _ => return,
        }
        let outcome = match self.full() {
            Some(full) => Err(full),
            None => self.reopen(),
        };
        let then = Then::RecoverAt(Instant::now() + RETRY);
        self.failure = outcome.err().map(|text| Failure { text, then });
    }

    fn reopen(&mut self) -> Result<(), String> {
        let mut published = self.hub.replace();
        *published = Published::Failed("the store is recovering from a full disk".into());
        if let Some(view) = self.view.take() {
            release(view);
        }
        let disk = Disk::open(&self.dir, &self.options).map_err(|error| describe(&error))?;
        let (view, leases, scrubbed) = load(disk).map_err(|error| describe(&error))?;
        drop(published);
        // A write whose outcome was unknown may have happened.
        let missed = self.hub.revision() + 1;
        let missed = view.replay(&KeyRange::prefix(""), missed, usize::MAX);
        let missed = missed.map_err(|error| describe(&error))?.events;
        tracing::info!(revision = view.revision, "the store has recovered");
        (self.view, self.leases, self.scrubbed) = (Some(view.clone()), leases, scrubbed);
        self.hub.publish(view, &missed);
        Ok(())
    }

    /// Says so when there is so little room that fjall might fail to tidy up. Deletions still go
    /// through.
    fn full(&self) -> Option<String> {
        let free = statvfs(&self.dir).ok()?;
        let free = free.blocks_available() * free.fragment_size();
        let reserve = self.options.reserve_bytes;
        let mib = |bytes: u64| bytes >> 20;
        (free < reserve).then(|| {
            let (dir, free, reserve) = (self.dir.display(), mib(free), mib(reserve));
            format!("the disk under {dir} is full: {free} MiB free, {reserve} MiB needed")
        })
    }

    fn shut_down(self, close: Option<Request>) {
        self.hub.close();
        let closed = self.view.map_or(Ok(()), |view| {
            let synced = view.disk.database.persist(PersistMode::SyncAll);
            release(view);
            synced.map_err(failed("close the store"))
        });
        // Whoever waits for the close may open the directory next.
        drop(self.lock);
        if let Some(Request { reply, .. }) = close {
            let _ = reply.send(closed.map(|()| Answer::Done));
        }
    }
}

impl Operation {
    fn puts(&self) -> bool {
        let put = |write: &Write| matches!(write, Write::Put { .. });
        matches!(self, Operation::Txn(txn) if txn.writes.iter().any(put))
    }
}

/// What the disk says at start.
fn load(disk: Arc<Disk>) -> Result<(Arc<View>, Leases, Revision), Error> {
    let view = View::load(disk)?;
    let leases = Leases::load(&view.leases()?, Instant::now());
    let scrubbed = view.disk.number(layout::SCRUBBED).map_err(failed("read the store"))?;
    Ok((Arc::new(view), leases, scrubbed.unwrap_or(0)))
}

/// Closes a disk once the reads in progress are done; they are finite and hold nothing else.
fn release(view: Arc<View>) {
    let disk = Arc::downgrade(&view.disk);
    drop(view);
    while disk.strong_count() > 0 {
        pause();
    }
}

fn no_space(text: &str) -> Error {
    let source = std::io::Error::new(StorageFull, text);
    Error::Io { operation: "write the store", source: source.into() }
}

/// An error with its causes, in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.ends_with(&cause) { text } else { format!("{text}: {cause}") }
    })
}
