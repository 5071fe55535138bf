//! The namespace that a run works in, and its removal.
//!
//! The name is chosen here and not by the server, so that a run interrupted at any moment knows what to remove. What
//! is inside is removed first, with deletecollection: a server without a namespace controller keeps no litter either.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use http::StatusCode;
use serde_json::json;

use crate::{
    connection::{Call, Connection, message},
    target::Target,
};

/// What scenarios create.
const KINDS: [&str; 2] = ["pods", "configmaps"];
/// Servers give one request a minute; a large collection may need several.
const ATTEMPTS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(90);
/// How long the namespace controller may take before the rest is left to it.
const REMOVAL: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

pub struct Namespace {
    name: String,
    target: Arc<Target>,
}

impl Namespace {
    /// Names it; does not create it.
    pub fn new(target: &Arc<Target>) -> Namespace {
        let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
        let name = format!("bench-{:x}", nanoseconds ^ u64::from(std::process::id()) << 40);
        Namespace { name, target: target.clone() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path of the collection of a core kind in it.
    pub fn collection(&self, plural: &str) -> String {
        format!("{}/{plural}", self.path())
    }

    fn path(&self) -> String {
        format!("/api/v1/namespaces/{}", self.name)
    }

    pub async fn create(&self) -> anyhow::Result<()> {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}});
        Connection::open(&self.target).await?.call(&Call::post("/api/v1/namespaces", object.to_string())).await?;
        Ok(())
    }

    /// Waits until `plural/name` exists in it: what controllers put into every namespace.
    pub async fn wait_for(&self, plural: &str, name: &str) -> anyhow::Result<()> {
        let (call, mut connection) =
            (Call::get(format!("{}/{plural}/{name}", self.path())), Connection::open(&self.target).await?);
        let appears = async {
            while connection.answer(&call).await?.0 == StatusCode::NOT_FOUND {
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        };
        let waited = tokio::time::timeout(PATIENCE, appears).await;
        waited.with_context(|| format!("no {plural} {name} in a new namespace: are the controllers running?"))?
    }

    /// Removes it and all in it; it need not exist. Deleted first, it takes no more objects from requests that an
    /// interrupted run left in flight.
    pub async fn delete(&self) -> anyhow::Result<()> {
        let mut connection = Connection::open(&self.target).await?;
        if self.is_gone(&mut connection).await? {
            return Ok(());
        }
        for plural in KINDS {
            self.clear(&mut connection, plural).await?;
        }
        let gone = async {
            while !self.is_gone(&mut connection).await? {
                tokio::time::sleep(POLL).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(REMOVAL, gone).await.unwrap_or_else(|_| {
            eprintln!("namespace {} is deleted and empty; its removal is the namespace controller's", self.name);
            Ok(())
        })
    }

    /// Deletes it, which asks nothing new of a namespace on its way out, and tells whether it is gone.
    async fn is_gone(&self, connection: &mut Connection) -> anyhow::Result<bool> {
        match connection.answer(&Call::delete(self.path())).await? {
            (StatusCode::NOT_FOUND, _) => Ok(true),
            // Upstream calls deleting what is being deleted a conflict.
            (code, _) if code.is_success() || code == StatusCode::CONFLICT => Ok(false),
            (code, body) => anyhow::bail!("delete namespace {}: {code}: {}", self.name, message(&body)),
        }
    }

    async fn clear(&self, connection: &mut Connection, plural: &str) -> anyhow::Result<()> {
        let call = Call::delete(self.collection(plural));
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match tokio::time::timeout(PATIENCE, connection.drain(&call)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => last = Some(error),
                Err(_) => last = Some(anyhow::anyhow!("delete all {plural}: no answer in {PATIENCE:?}")),
            }
            *connection = Connection::open(&self.target).await?;
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("delete all {plural}")))
    }
}
