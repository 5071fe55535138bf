//! Leader election on a Lease, as client-go does it: 15 s lease, 10 s to renew, 2 s between tries. It refuses to know
//! what leading means, and trusts only its own clock: a lease is free when it has not changed for its duration here.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long others wait for a silent leader.
    pub lease: Duration,
    /// How long a leader tries to renew before it gives up; less than `lease`.
    pub renew: Duration,
    /// Between tries.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { lease: seconds(15), renew: seconds(10), retry: seconds(2) }
    }
}

pub struct LeaderElector {
    api: Api<Lease>,
    namespace: String,
    name: String,
    identity: String,
    timing: Timing,
    observed: Option<(LeaseSpec, Instant)>,
}

impl LeaderElector {
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            timing: Timing::default(),
            observed: None,
        }
    }

    pub fn timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// Waits for the lease, then runs `lead` until it ends by itself or `shutdown`; its token is cancelled when the lease
    /// is lost, which is an error, since the process can no longer be sure of its state. None if never elected.
    pub async fn run<T, F: Future<Output = T>>(
        mut self,
        shutdown: CancellationToken,
        lead: impl FnOnce(CancellationToken) -> F,
    ) -> anyhow::Result<Option<T>> {
        if shutdown.run_until_cancelled(self.acquire()).await.is_none() {
            return Ok(None);
        }
        let leading = shutdown.child_token();
        let mut work = std::pin::pin!(lead(leading.clone()));
        let lost = tokio::select! {
            output = &mut work => {
                self.release().await;
                return Ok(Some(output));
            }
            () = shutdown.cancelled() => false,
            () = self.keep() => true,
        };
        leading.cancel();
        let output = work.await;
        if lost {
            bail!("lost the lease {}/{}", self.namespace, self.name);
        }
        self.release().await;
        Ok(Some(output))
    }

    async fn acquire(&mut self) {
        loop {
            match self.try_hold().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::debug!("{error:#}"),
            }
            tokio::time::sleep(self.timing.retry.mul_f64(1.0 + rand::random_range(0.0..1.2))).await;
        }
    }

    /// Renews until that has failed for too long.
    async fn keep(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.timing.retry).await;
            match tokio::time::timeout_at(renewed + self.timing.renew, self.try_hold()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(error)) => tracing::debug!("{error:#}"),
            }
        }
    }

    /// Whether this identity holds the lease now.
    async fn try_hold(&mut self) -> anyhow::Result<bool> {
        let found = self.api.get_opt(&self.name).await.context("read the election lease")?;
        let now = MicroTime(Timestamp::now());
        let old = found.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let holder = old.holder_identity.as_deref().unwrap_or_default();
        let (ours, free) = (holder == self.identity, holder.is_empty());
        if found.is_some() && !ours && !free && !self.expired(&old) {
            return Ok(false);
        }
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(self.timing.lease.as_secs().max(1) as i32),
            acquire_time: if ours { old.acquire_time.clone() } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(old.lease_transitions.unwrap_or(0) + i32::from(found.is_some() && !ours)),
            ..old
        };
        self.write(found, spec).await
    }

    /// Whether a lease held by another has not changed for its duration, as seen from here.
    fn expired(&mut self, lease: &LeaseSpec) -> bool {
        match &self.observed {
            Some((seen, since)) if seen == lease => {
                let duration =
                    lease.lease_duration_seconds.map_or(self.timing.lease, |s| Duration::from_secs(s as u64));
                since.elapsed() > duration
            }
            _ => {
                self.observed = Some((lease.clone(), Instant::now()));
                false
            }
        }
    }

    async fn write(&self, found: Option<Lease>, spec: LeaseSpec) -> anyhow::Result<bool> {
        let params = PostParams::default();
        let outcome = match found {
            Some(lease) => self.api.replace(&self.name, &params, &Lease { spec: Some(spec), ..lease }).await,
            None => {
                let (name, namespace) = (Some(self.name.clone()), Some(self.namespace.clone()));
                let metadata = ObjectMeta { name, namespace, ..Default::default() };
                self.api.create(&params, &Lease { metadata, spec: Some(spec) }).await
            }
        };
        outcome.map(|_| true).context("write the election lease")
    }

    /// Hands the lease over at once instead of letting it run out.
    async fn release(&self) {
        let Ok(Some(lease)) = self.api.get_opt(&self.name).await else { return };
        let old = lease.spec.clone().unwrap_or_default();
        if old.holder_identity.as_deref() != Some(&self.identity) {
            return;
        }
        let now = Some(MicroTime(Timestamp::now()));
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            renew_time: now.clone(),
            acquire_time: now,
            ..old
        };
        if let Err(error) = self.write(Some(lease), spec).await {
            tracing::debug!("{error:#}");
        }
    }
}
