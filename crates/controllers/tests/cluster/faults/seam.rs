//! Between the controllers and the API server: counts the writes of some controllers in each run, and ends them after a
//! certain one, as the death of the process or of a connection would. It refuses to know what is written.
//!
//! A run is a namespace and whatever of the cluster is named after it (`RUN-...`), so that one process can die at a
//! different moment in each of many runs: nothing of a dead process reaches the runs where it died.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll};

use apiserver::identity::UserInfo;
use client::Client;
use futures::future::{BoxFuture, FutureExt as _};
use http::Method;
use parking_lot::Mutex;
use tower::{BoxError, Service};

type Request = http::Request<kube::client::Body>;
type Answer = <apiserver::Service as Service<Request>>::Response;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The process dies: the write has reached the server, its answer reaches nobody.
    DiesAfter,
    /// The process dies: the write has not left it.
    DiesBefore,
    /// The connection breaks when the write has reached the server; the process lives on.
    LosesAnswer,
}

#[derive(Default)]
struct Run {
    /// At which write, counted from 1.
    fault: Option<(Fault, usize)>,
    written: usize,
    fired: bool,
    dead: bool,
}

#[derive(Clone, Default)]
pub struct Seam {
    /// Identities whose writes count.
    counted: &'static [&'static str],
    runs: Arc<Mutex<HashMap<String, Run>>>,
}

enum Verdict {
    Pass,
    Refuse,
    LoseAnswer,
}

impl Seam {
    pub fn new(counted: &'static [&'static str]) -> Self {
        Self { counted, runs: Arc::default() }
    }

    pub fn plan(&self, run: &str, fault: Option<(Fault, usize)>) {
        self.runs.lock().insert(run.to_owned(), Run { fault, ..Run::default() });
    }

    pub fn is_dead(&self, run: &str) -> bool {
        self.runs.lock()[run].dead
    }

    pub fn has_fired(&self, run: &str) -> bool {
        self.runs.lock()[run].fired
    }

    pub fn written(&self, run: &str) -> usize {
        self.runs.lock()[run].written
    }

    /// A client of `server` as `user`, counted as `identity`.
    pub fn client(&self, server: &apiserver::Server, user: UserInfo, identity: &str) -> Client {
        let counts = self.counted.contains(&identity);
        client::in_process(Guarded { service: server.service(), user, counts, seam: self.clone() }, "test")
    }

    fn judge(&self, counts: bool, request: &Request) -> Verdict {
        let mut runs = self.runs.lock();
        let Some(run) = target(request.uri().path()).and_then(|(run, _)| runs.get_mut(run)) else {
            return Verdict::Pass;
        };
        if run.dead {
            return Verdict::Refuse;
        }
        if !counts || !is_write(request) {
            return Verdict::Pass;
        }
        run.written += 1;
        let Some((fault, _)) = run.fault.filter(|(_, at)| *at == run.written) else { return Verdict::Pass };
        run.fired = true;
        run.dead = fault != Fault::LosesAnswer;
        if fault == Fault::DiesBefore { Verdict::Refuse } else { Verdict::LoseAnswer }
    }
}

/// The run and the resource that a path is about.
fn target(path: &str) -> Option<(&str, &str)> {
    let mut segments = path.split('/').skip(1);
    segments.by_ref().take(if path.starts_with("/api/") { 2 } else { 3 }).for_each(drop);
    let (mut resource, name) = (segments.next()?, segments.next()?);
    if resource == "namespaces" {
        resource = segments.next().unwrap_or(resource);
    }
    Some((name.split('-').next()?, resource))
}

/// Events are reports, not state: they neither count nor matter.
fn is_write(request: &Request) -> bool {
    let writes = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(request.method());
    writes && target(request.uri().path()).is_some_and(|(_, resource)| resource != "events")
}

#[derive(Clone)]
struct Guarded {
    service: apiserver::Service,
    user: UserInfo,
    counts: bool,
    seam: Seam,
}

impl Service<Request> for Guarded {
    type Response = Answer;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Answer, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(())) // as the service in memory always is
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let broken = || Err(BoxError::from("connection broken by the test"));
        let verdict = self.seam.judge(self.counts, &request);
        request.extensions_mut().insert(self.user.clone());
        match verdict {
            Verdict::Refuse => futures::future::ready(broken()).boxed(),
            Verdict::Pass => self.service.call(request).map(|answer| Ok(answer?)).boxed(),
            Verdict::LoseAnswer => self.service.call(request).map(move |_| broken()).boxed(),
        }
    }
}

#[test]
fn paths_belong_to_runs() {
    for (path, expected) in [
        ("/api/v1/namespaces/r7/pods/a", Some(("r7", "pods"))),
        ("/api/v1/namespaces/r7-x", Some(("r7", "namespaces"))),
        ("/apis/apps/v1/namespaces/r7/deployments", Some(("r7", "deployments"))),
        ("/api/v1/nodes/r7-n/status", Some(("r7", "nodes"))),
        ("/apis/rbac.authorization.k8s.io/v1/clusterroles/r7-view", Some(("r7", "clusterroles"))),
        ("/api/v1/pods", None),
    ] {
        assert_eq!(target(path), expected, "{path}");
    }
}
