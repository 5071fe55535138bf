//! The scheduling framework: upstream's extension points as one trait, of which a plugin implements the methods it is
//! for. It refuses to know which plugins there are.
//!
//! PreFilter, PreScore and Reserve return what the later calls need as a value (`Filter`, `Score`, `PreBind`), so that no plugin keeps state
//! between decisions and no two plugins can meet in a shared map.

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use client::Client;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim};

use crate::decide::Diagnosis;
use crate::pod::PodInfo;
use crate::snapshot::{NodeId, Snapshot};

/// Scores are 0 to this after normalization.
pub const MAX_SCORE: i64 = 100;

/// Why a node, or every node, cannot take a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reasons: Vec<Cow<'static, str>>,
    /// Whether removing pods could not change it.
    pub unresolvable: bool,
}

impl Refusal {
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reasons: vec![reason.into()], unresolvable: false }
    }

    pub fn unresolvable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { unresolvable: true, ..Self::new(reason) }
    }
}

pub type Filtered = Result<(), Refusal>;

/// What PreFilter made of a pod; judges one node at a time.
pub trait Filter<'a> {
    fn filter(&self, node: NodeId) -> Filtered;

    /// From now on judge as if a pod were (or were not) on a node: preemption and nominations ask what-if.
    fn assume(&mut self, _node: NodeId, _pod: &'a PodInfo, _present: bool) {}

    /// The only nodes that can pass, if that is known beforehand.
    fn only(&self) -> Option<Vec<NodeId>> {
        None
    }
}

/// What PreScore made of a pod; higher is better after `normalize`.
pub trait Score {
    fn score(&self, node: NodeId) -> i64;

    /// Brings the scores of the nodes, in their order, to 0..=MAX_SCORE.
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// What PreFilter found.
pub enum PreFilter<'a> {
    /// Nothing to filter by.
    Skip,
    Use(Box<dyn Filter<'a> + 'a>),
    /// No node can take the pod.
    Refuse(Refusal),
}

/// What PostFilter found for a pod that fits nowhere.
#[derive(Debug, Default)]
pub struct PostFilter {
    pub message: String,
    pub nomination: Nomination,
}

/// What becomes of the pod's nominated node.
#[derive(Debug, Default)]
pub enum Nomination {
    #[default]
    Keep,
    Clear,
    Set {
        node: NodeId,
        victims: Vec<Arc<PodInfo>>,
    },
}

/// A change that may make room for pods that did not fit.
#[derive(Clone, Copy)]
pub enum ClusterEvent<'a> {
    Node {
        old: Option<&'a Node>,
        new: &'a Node,
    },
    /// A pod came to a node, or changed on it.
    PodPlaced {
        old: Option<&'a PodInfo>,
        new: &'a PodInfo,
    },
    PodGone(&'a PodInfo),
    Claim(&'a PersistentVolumeClaim),
    /// A persistent volume or a storage class came or changed.
    Storage,
    /// Something that concerns pods of any kind, such as the labels of a namespace.
    Other,
}

/// What Reserve left to do before the pod is bound; runs beside other decisions, and may wait.
#[async_trait]
pub trait PreBind: Send + Sync {
    async fn run(&self, client: &Client) -> anyhow::Result<()>;
}

/// What the plugins left to do, with their names.
pub type Reserved = Vec<(&'static str, Box<dyn PreBind>)>;

#[async_trait]
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;

    /// How much its score counts.
    fn weight(&self) -> i64 {
        1
    }

    /// QueueSort: pods with the smaller rank go first, equal ones in the order of their arrival.
    fn rank(&self, _pod: &PodInfo) -> Option<i64> {
        None
    }

    /// Refuses pods that are not to be tried at all.
    fn pre_enqueue(&self, _pod: &PodInfo) -> Filtered {
        Ok(())
    }

    fn pre_filter<'a>(&self, _snapshot: &'a Snapshot, _pod: &'a PodInfo) -> PreFilter<'a> {
        PreFilter::Skip
    }

    fn post_filter(&self, _diagnosis: &mut Diagnosis<'_>) -> Option<PostFilter> {
        None
    }

    fn pre_score<'a>(
        &self,
        _snapshot: &'a Snapshot,
        _pod: &'a PodInfo,
        _nodes: &[NodeId],
    ) -> Option<Box<dyn Score + 'a>> {
        None
    }

    /// QueueingHint: whether an event may let a pod pass that this plugin refused.
    fn hint(&self, _event: ClusterEvent<'_>, _pod: &PodInfo) -> bool {
        false
    }

    /// Notes in the snapshot what the chosen node means for other decisions.
    fn reserve(
        &self,
        _snapshot: &mut Snapshot,
        _pod: &PodInfo,
        _node: NodeId,
    ) -> anyhow::Result<Option<Box<dyn PreBind>>> {
        Ok(None)
    }

    fn unreserve(&self, _snapshot: &mut Snapshot, _pod: &PodInfo) {}

    /// May wait before it allows the binding.
    async fn permit(&self, _client: &Client, _pod: &PodInfo, _node: &str) -> anyhow::Result<()> {
        Ok(())
    }

    /// Whether it has bound the pod; the first that does ends the row.
    async fn bind(&self, _client: &Client, _pod: &PodInfo, _node: &str) -> anyhow::Result<bool> {
        Ok(false)
    }

    fn post_bind(&self, _pod: &PodInfo, _node: &str) {}
}

/// The plugins of a profile, in their order.
pub struct Framework {
    pub plugins: Vec<Box<dyn Plugin>>,
}

impl Framework {
    pub fn rank(&self, pod: &PodInfo) -> i64 {
        self.plugins.iter().find_map(|plugin| plugin.rank(pod)).unwrap_or_default()
    }

    /// The plugin that keeps a pod from being tried, and why.
    pub fn pre_enqueue(&self, pod: &PodInfo) -> Option<(&'static str, Refusal)> {
        self.plugins.iter().find_map(|plugin| Some((plugin.name(), plugin.pre_enqueue(pod).err()?)))
    }

    /// Whether an event may help a pod that these plugins refused.
    pub fn hint(&self, event: ClusterEvent<'_>, pod: &PodInfo, refused_by: &[&'static str]) -> bool {
        let concerned = self.plugins.iter().filter(|plugin| refused_by.contains(&plugin.name()));
        refused_by.is_empty()
            || matches!(event, ClusterEvent::Other)
            || concerned.into_iter().any(|plugin| plugin.hint(event, pod))
    }

    /// All plugins reserve, or none does.
    pub fn reserve(&self, snapshot: &mut Snapshot, pod: &PodInfo, node: NodeId) -> anyhow::Result<Reserved> {
        let mut reserved = Reserved::new();
        for plugin in &self.plugins {
            match plugin.reserve(snapshot, pod, node) {
                Ok(left) => reserved.extend(left.map(|left| (plugin.name(), left))),
                Err(error) => {
                    self.unreserve(snapshot, pod);
                    let name = plugin.name();
                    return Err(error.context(format!("running Reserve plugin {name:?}")));
                }
            }
        }
        Ok(reserved)
    }

    /// In the reverse order; idempotent, since it also undoes half a reservation.
    pub fn unreserve(&self, snapshot: &mut Snapshot, pod: &PodInfo) {
        self.plugins.iter().rev().for_each(|plugin| plugin.unreserve(snapshot, pod));
    }

    /// The binding cycle: Permit, PreBind, Bind, PostBind.
    pub async fn bind(&self, client: &Client, pod: &PodInfo, node: &str, reserved: Reserved) -> anyhow::Result<()> {
        for plugin in &self.plugins {
            plugin.permit(client, pod, node).await?;
        }
        for (plugin, left) in reserved {
            left.run(client).await.with_context(|| format!("running PreBind plugin {plugin:?}"))?;
        }
        for plugin in &self.plugins {
            if plugin.bind(client, pod, node).await? {
                self.plugins.iter().for_each(|plugin| plugin.post_bind(pod, node));
                return Ok(());
            }
        }
        anyhow::bail!("no plugin binds the pod {}/{}", pod.namespace(), pod.name())
    }
}
