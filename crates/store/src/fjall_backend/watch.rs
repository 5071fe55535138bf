//! One watch: history first, then live, without gap or duplicate.
//!
//! A watcher far behind reads history in bounded pieces without being registered, so that catching
//! up never overflows its buffer. When little is left it subscribes, reads the rest from the view
//! it got with the subscription, and from there on only the queue.

use std::sync::Arc;

use futures::{StreamExt, stream};

use super::hub::{Hub, Subscription};
use super::view::{Replay, View};
use crate::{Error, KeyRange, Revision, WatchBatch, WatchStream};

/// So close to the present, a watcher subscribes.
const CLOSE: Revision = 1_000;
/// Bytes read from history at a time.
const PIECE: usize = 1 << 20;

pub fn start(hub: Arc<Hub>, range: KeyRange, from: Revision) -> Result<WatchStream, Error> {
    // There is nothing before the first revision.
    let from = from.max(0);
    let watch = Watch { hub, range, from, next: from, phase: Phase::Behind };
    watch.check(&*watch.hub.view()?)?;
    Ok(stream::unfold(watch, async |mut watch| Some((watch.step().await?, watch))).boxed())
}

struct Watch {
    hub: Arc<Hub>,
    range: KeyRange,
    from: Revision,
    /// Events before this are delivered.
    next: Revision,
    phase: Phase,
}

enum Phase {
    Behind,
    Live(Subscription),
    Ended,
}

impl Watch {
    async fn step(&mut self) -> Option<Result<WatchBatch, Error>> {
        let outcome = match &mut self.phase {
            Phase::Behind => self.catch_up().await,
            Phase::Live(subscription) => subscription.next().await.unwrap_or(Err(Error::Closed)),
            Phase::Ended => return None,
        };
        if outcome.is_err() {
            self.phase = Phase::Ended;
        }
        match outcome {
            Err(Error::Closed) => None,
            outcome => Some(outcome),
        }
    }

    /// Reads history until there is something to deliver or it is joined to the live feed.
    async fn catch_up(&mut self) -> Result<WatchBatch, Error> {
        loop {
            let mut view = self.hub.view()?;
            self.check(&view)?;
            let close = view.revision - self.next < CLOSE;
            if close {
                let (joined, subscription) = self.hub.subscribe(self.range.clone(), self.from)?;
                self.check(&joined)?;
                view = joined;
                self.phase = Phase::Live(subscription);
            }
            let budget = if close { usize::MAX } else { PIECE };
            let Replay { events, through } = self.replay(view, budget).await?;
            self.next = self.next.max(through + 1);
            // Joining is worth a notice: it says how far the watcher is.
            if close || !events.is_empty() {
                return Ok(WatchBatch { revision: through, events });
            }
        }
    }

    async fn replay(&self, view: Arc<View>, budget: usize) -> Result<Replay, Error> {
        if self.next > view.revision {
            return Ok(Replay { events: Vec::new(), through: view.revision });
        }
        let (range, next) = (self.range.clone(), self.next);
        super::blocking(move || view.replay(&range, next, budget)).await
    }

    fn check(&self, view: &View) -> Result<(), Error> {
        if self.next < view.oldest {
            return Err(Error::Compacted { requested: self.next, oldest: view.oldest });
        }
        Ok(())
    }
}
