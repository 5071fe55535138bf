//! Probes, lifecycle hooks and the actions they share.

use k8s_openapi::api::core::v1::{ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, TCPSocketAction};
use machinery::field::Path;
use machinery::names;

use crate::validate::{Errors, indexed, text};

pub fn probe(probe: &Probe, path: &Path, errors: &mut Errors) {
    let handlers = Handlers {
        exec: probe.exec.as_ref(),
        http_get: probe.http_get.as_ref(),
        tcp_socket: probe.tcp_socket.as_ref(),
        grpc: probe.grpc.as_ref().map(|grpc| grpc.port),
        sleep: None,
    };
    handlers.validate(0, path, errors);
    let numbers = [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ];
    for (key, number) in numbers {
        errors.non_negative(&path.child(key), number);
    }
    if let Some(seconds) = probe.termination_grace_period_seconds
        && seconds <= 0
    {
        errors.invalid(&path.child("terminationGracePeriodSeconds"), seconds, "must be greater than 0");
    }
}

/// Liveness and startup probes: one success is enough, by definition.
pub fn single_success(probe: &Probe, path: &Path, errors: &mut Errors) {
    self::probe(probe, path, errors);
    if let Some(threshold) = probe.success_threshold
        && threshold != 1
    {
        errors.invalid(&path.child("successThreshold"), threshold, "must be 1");
    }
}

pub fn readiness(probe: &Probe, path: &Path, errors: &mut Errors) {
    self::probe(probe, path, errors);
    if let Some(seconds) = probe.termination_grace_period_seconds {
        let detail = "must not be set for readinessProbes";
        errors.invalid(&path.child("terminationGracePeriodSeconds"), seconds, detail);
    }
}

pub fn lifecycle(lifecycle: &Lifecycle, grace: i64, path: &Path, errors: &mut Errors) {
    for (key, hook) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
        if let Some(hook) = hook {
            Handlers::of_hook(hook).validate(grace, &path.child(key), errors);
        }
    }
}

/// What a probe or a hook may do: exactly one of these.
struct Handlers<'a> {
    exec: Option<&'a ExecAction>,
    http_get: Option<&'a HTTPGetAction>,
    tcp_socket: Option<&'a TCPSocketAction>,
    grpc: Option<i32>,
    sleep: Option<i64>,
}

impl<'a> Handlers<'a> {
    fn of_hook(hook: &'a LifecycleHandler) -> Self {
        Handlers {
            exec: hook.exec.as_ref(),
            http_get: hook.http_get.as_ref(),
            tcp_socket: hook.tcp_socket.as_ref(),
            grpc: None,
            sleep: hook.sleep.as_ref().map(|sleep| sleep.seconds),
        }
    }

    fn validate(&self, grace: i64, path: &Path, errors: &mut Errors) {
        let set = [
            ("exec", self.exec.is_some()),
            ("httpGet", self.http_get.is_some()),
            ("tcpSocket", self.tcp_socket.is_some()),
            ("grpc", self.grpc.is_some()),
            ("sleep", self.sleep.is_some()),
        ];
        let mut given = set.iter().filter(|(_, set)| *set).map(|(key, _)| *key);
        let Some(first) = given.next() else {
            errors.required(path, "must specify a handler type");
            return;
        };
        for extra in given {
            errors.forbidden(&path.child(extra), "may not specify more than 1 handler type");
        }
        let at = path.child(first);
        if let Some(exec) = self.exec {
            if exec.command.as_ref().is_none_or(Vec::is_empty) {
                errors.required(&at.child("command"), "");
            }
        } else if let Some(http) = self.http_get {
            http_get(http, &at, errors);
        } else if let Some(tcp) = self.tcp_socket {
            errors.port_or_name(&at.child("port"), &tcp.port);
        } else if let Some(port) = self.grpc {
            errors.port(&at.child("port"), port);
        } else if let Some(seconds) = self.sleep
            && !(0..=grace).contains(&seconds)
        {
            let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
            errors.invalid(&at, seconds, detail);
        }
    }
}

fn http_get(action: &HTTPGetAction, path: &Path, errors: &mut Errors) {
    errors.needed(&path.child("path"), text(&action.path));
    errors.port_or_name(&path.child("port"), &action.port);
    errors.one_of(&path.child("scheme"), action.scheme.as_deref(), &["HTTP", "HTTPS"]);
    for (at, header) in indexed(action.http_headers.as_ref(), &path.child("httpHeaders")) {
        errors.all_invalid(&at.child("name"), &header.name, names::is_http_header_name(&header.name));
    }
}
