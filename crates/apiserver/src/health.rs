//! /healthz, /livez and /readyz: named checks, all of which must pass.

use std::sync::atomic::{AtomicBool, Ordering};

use http::StatusCode;

use crate::{
    api::{Api, not_found},
    request::Query,
    respond::{self, Answered},
};

/// What is not true from the beginning.
#[derive(Default)]
pub struct Health {
    /// The bootstrap objects exist.
    pub bootstrapped: AtomicBool,
}

const CHECKS: [&str; 4] = ["ping", "store", "poststarthook/bootstrap", "shutdown"];

impl Api {
    pub fn ready(&self) -> bool {
        self.health.bootstrapped.load(Ordering::Acquire) && !self.shutdown.is_cancelled()
    }

    async fn check(&self, name: &str) -> Result<(), &'static str> {
        let (passed, why) = match name {
            "store" => (self.writer.objects.hub.consistent().await.is_ok(), "the store cannot be read"),
            "poststarthook/bootstrap" => (self.health.bootstrapped.load(Ordering::Acquire), "not finished"),
            "shutdown" => (!self.shutdown.is_cancelled(), "process is shutting down"),
            _ => (true, ""),
        };
        if passed { Ok(()) } else { Err(why) }
    }

    /// `path` is `healthz`, `livez` or `readyz`, perhaps with a check's name behind it.
    pub async fn healthy(&self, path: &str, query: &Query) -> Answered {
        let (endpoint, only) = path.split_once('/').unwrap_or((path, ""));
        let excluded: Vec<&str> = query.all("exclude").collect();
        // Not being ready is no reason to be restarted.
        let alive_only = |name: &str| endpoint == "readyz" || name == "ping" || name == "store";
        let wanted = |name: &&&str| if only.is_empty() { alive_only(name) } else { **name == only };
        let names: Vec<&str> = CHECKS.iter().filter(wanted).copied().collect();
        if names.is_empty() {
            return not_found();
        }
        let (mut lines, mut failed) = (String::new(), false);
        for name in names {
            let line = match self.check(name).await {
                _ if excluded.contains(&name) => format!("[+]{name} excluded: ok\n"),
                Ok(()) => format!("[+]{name} ok\n"),
                Err(_) => {
                    failed = true;
                    format!("[-]{name} failed: reason withheld\n")
                }
            };
            lines.push_str(&line);
        }
        match failed {
            true => respond::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{endpoint} check failed\n")),
            false if query.find("verbose").is_some() => {
                respond::text(StatusCode::OK, format!("{lines}{endpoint} check passed\n"))
            }
            false => respond::text(StatusCode::OK, "ok"),
        }
    }
}
