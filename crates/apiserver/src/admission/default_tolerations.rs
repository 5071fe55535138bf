//! DefaultTolerationSeconds: a pod stays five minutes on a node that is lost, unless it says otherwise.

use async_trait::async_trait;
use machinery::status::Result;
use serde_json::{Value, json};

use super::pod::{items, list_mut, text};
use super::{Admission, AdmissionRequest};

const TAINTS: &[&str] = &["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const SECONDS: i64 = 300;

pub struct DefaultTolerationSeconds;

#[async_trait]
impl Admission for DefaultTolerationSeconds {
    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<()> {
        if !request.is_pod() {
            return Ok(());
        }
        let Some(pod) = &mut request.object else { return Ok(()) };
        for taint in TAINTS {
            if !items(&pod["spec"]["tolerations"]).any(|toleration| tolerates(toleration, taint)) {
                list_mut(&mut pod["spec"], "tolerations").push(json!({
                    "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS,
                }));
            }
        }
        Ok(())
    }
}

fn tolerates(toleration: &Value, taint: &str) -> bool {
    ["", taint].contains(&text(toleration, "key")) && ["", "NoExecute"].contains(&text(toleration, "effect"))
}
