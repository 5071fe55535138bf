//! The sending side of a connection that many channels share: one queue, bounded in bytes.
//!
//! Knows no protocol: what is queued is an [`Item`] of it, and one writer takes them off. The bound is
//! on bytes rather than items, so that ending a channel never has to wait and can happen on drop; data
//! waits, which is how a slow client slows the container down.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::PollSemaphore;

/// Bytes of a connection that may wait to be sent.
const QUEUED: usize = 256 << 10;
/// Most bytes in one message: what client-go reads at once.
pub(super) const CHUNK: usize = 32 << 10;
/// What a message without data counts for.
const CONTROL: u32 = 64;

/// What the queue of a protocol holds.
pub(super) trait Item: Send + 'static {
    fn data(channel: u32, data: Bytes) -> Self;
    /// Tells the client that the channel carries no more, if the protocol can say so.
    fn end(channel: u32) -> Option<Self>
    where
        Self: Sized;
}

struct Queued<T>(T, #[expect(dead_code, reason = "gives the bytes back when dropped")] Option<OwnedSemaphorePermit>);

pub(super) struct Queue<T> {
    items: mpsc::UnboundedSender<Queued<T>>,
    budget: Arc<Semaphore>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Queue { items: self.items.clone(), budget: self.budget.clone() }
    }
}

/// The writer's end. Once it is dropped, every write fails.
pub(super) struct Drain<T> {
    items: mpsc::UnboundedReceiver<Queued<T>>,
    budget: Arc<Semaphore>,
}

pub(super) fn queue<T: Item>() -> (Queue<T>, Drain<T>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let budget = Arc::new(Semaphore::new(QUEUED));
    (Queue { items: sender, budget: budget.clone() }, Drain { items: receiver, budget })
}

impl<T: Item> Queue<T> {
    /// The writer of a channel.
    pub(super) fn outlet(&self, channel: u32) -> Outlet<T> {
        let budget = PollSemaphore::new(self.budget.clone());
        Outlet { queue: self.clone(), budget, channel, state: Arc::default() }
    }

    /// Queues a message without data, once there is room.
    pub(super) async fn send(&self, item: T) {
        let permit = self.budget.clone().acquire_many_owned(CONTROL).await.ok();
        self.send_now(item, permit);
    }

    /// Queues the last message of a connection.
    pub(super) fn finish(&self, item: T) {
        self.send_now(item, None);
    }

    fn send_now(&self, item: T, permit: Option<OwnedSemaphorePermit>) -> bool {
        self.items.send(Queued(item, permit)).is_ok()
    }
}

impl<T> Drain<T> {
    pub(super) async fn next(&mut self) -> Option<T> {
        self.items.recv().await.map(|queued| queued.0)
    }

    /// What can be had without waiting.
    pub(super) fn ready(&mut self) -> Option<T> {
        self.items.try_recv().ok().map(|queued| queued.0)
    }
}

impl<T> Drop for Drain<T> {
    fn drop(&mut self) {
        self.budget.close();
    }
}

/// Shared by a channel's writer and the reader of its connection.
#[derive(Default)]
pub(super) struct ChannelState(AtomicBool);

impl ChannelState {
    /// The client wants no more of this channel.
    pub(super) fn reset(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_closed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Writes to one channel. Shutting it down or dropping it ends the channel in this direction.
pub(super) struct Outlet<T: Item> {
    queue: Queue<T>,
    budget: PollSemaphore,
    channel: u32,
    state: Arc<ChannelState>,
}

impl<T: Item> Outlet<T> {
    pub(super) fn state(&self) -> &Arc<ChannelState> {
        &self.state
    }

    /// An empty message, which tells a WebSocket client that the channel is there.
    pub(super) fn announce(&self) {
        self.queue.send_now(T::data(self.channel, Bytes::new()), None);
    }

    fn end(&self) {
        if !self.state.0.swap(true, Ordering::Relaxed)
            && let Some(end) = T::end(self.channel)
        {
            self.queue.send_now(end, None);
        }
    }
}

impl<T: Item> AsyncWrite for Outlet<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let length = data.len().min(CHUNK);
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        let permit = ready!(self.budget.poll_acquire_many(context, length as u32));
        let item = T::data(self.channel, Bytes::copy_from_slice(&data[..length]));
        let sent = permit.is_some() && !self.state.is_closed() && self.queue.send_now(item, permit);
        Poll::Ready(if sent { Ok(length) } else { Err(io::ErrorKind::BrokenPipe.into()) })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl<T: Item> Drop for Outlet<T> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[derive(Debug, PartialEq)]
    enum Event {
        Data(u32, usize),
        End(u32),
    }

    impl Item for Event {
        fn data(channel: u32, data: Bytes) -> Event {
            Event::Data(channel, data.len())
        }

        fn end(channel: u32) -> Option<Event> {
            Some(Event::End(channel))
        }
    }

    #[tokio::test]
    async fn a_full_queue_holds_the_writer_back_but_not_the_end() {
        let (queue, mut drain) = queue::<Event>();
        let (mut full, other) = (queue.outlet(1), queue.outlet(2));
        let everything = vec![0; QUEUED];
        full.write_all(&everything).await.unwrap();
        assert!(futures::poll!(Box::pin(full.write_all(b"x"))).is_pending());
        drop(other);
        let mut sent = 0;
        while let Some(event) = drain.ready() {
            match event {
                Event::Data(1, length) => sent += length,
                other => assert_eq!(other, Event::End(2)),
            }
        }
        assert_eq!(sent, QUEUED);
        full.write_all(b"x").await.unwrap();
        assert_eq!(drain.next().await, Some(Event::Data(1, 1)));
        full.shutdown().await.unwrap();
        drop(full);
        assert_eq!(drain.next().await, Some(Event::End(1)));
        assert_eq!(drain.ready(), None, "a channel ends once");
    }

    #[tokio::test]
    async fn writes_fail_without_a_reader_or_after_a_reset() {
        let (queue, drain) = queue::<Event>();
        let (mut reset, mut blocked) = (queue.outlet(1), queue.outlet(2));
        reset.state().reset();
        assert_eq!(reset.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        blocked.write_all(&vec![0; QUEUED]).await.unwrap();
        let mut waiting = Box::pin(blocked.write(b"x"));
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(drain);
        assert_eq!(waiting.await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
