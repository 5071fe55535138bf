//! What every kind of session shares: its end, however it comes.
//!
//! A session is two futures: the *driver* moves bytes between the socket and the channels, the *work*
//! does what was asked. Knows neither protocol nor request.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until, timeout};

use super::Limits;

/// For the client to close its side after we have closed ours. Closing earlier, with bytes from the
/// client unread, would make TCP discard what the client has yet to receive.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// Runs until the work is done and the driver has said so to the client, until the client leaves, or
/// until nothing has moved for long.
pub(super) async fn run(
    driver: impl Future<Output = ()>,
    work: impl Future<Output = ()>,
    activity: Activity,
    limits: Limits,
) {
    let session = async {
        let (mut driver, mut work) = (pin!(driver), pin!(work));
        tokio::select! {
            () = &mut work => driver.await,
            () = &mut driver => {
                let _ = timeout(limits.grace, work).await;
            }
        }
    };
    tokio::select! {
        () = session => {}
        () = activity.idle(limits.idle) => tracing::debug!("stream closed: nothing moved for {:?}", limits.idle),
    }
}

/// When bytes last moved.
#[derive(Clone)]
pub(super) struct Activity(Arc<Mutex<Instant>>);

impl Activity {
    /// Ends when nothing has moved for `limit`.
    async fn idle(self, limit: Duration) {
        loop {
            let until = *self.0.lock() + limit;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// A socket that notes its activity.
pub(super) struct Watched<S> {
    socket: S,
    activity: Activity,
}

impl<S> Watched<S> {
    pub(super) fn new(socket: S) -> (Watched<S>, Activity) {
        let activity = Activity(Arc::new(Mutex::new(Instant::now())));
        (Watched { socket, activity: activity.clone() }, activity)
    }

    fn note<T>(&self, result: Poll<T>) -> Poll<T> {
        if result.is_ready() {
            *self.activity.0.lock() = Instant::now();
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.socket).poll_read(context, buffer);
        self.note(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write(context, data);
        self.note(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
