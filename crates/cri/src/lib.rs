//! CRI v1: the protocol between the kubelet and a container runtime, as messages, client and server.
//!
//! Knows nothing of either side. It is a crate of its own because both `kubelet` (client) and
//! `runtime` (server) speak it and neither may know the other; any third-party runtime takes the
//! place of ours at this line.

/// The `runtime.v1` package as defined in `cri.proto`.
#[expect(clippy::all, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

use std::path::Path;
use tonic::transport::{Channel, Endpoint, Uri};
use v1::Signal;

/// Connects lazily to a runtime's Unix socket, such as `/run/containerd/containerd.sock`
/// (a leading `unix://` is accepted). The channel reconnects by itself when the runtime restarts.
pub fn connect(endpoint: &str) -> Channel {
    let path: std::path::PathBuf = Path::new(endpoint.strip_prefix("unix://").unwrap_or(endpoint)).into();
    Endpoint::from_static("http://cri.invalid").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
    }))
}

/// A signal as pods and images name it, such as `SIGTERM` or `SIGRTMIN+3`; the runtime's choice if it is none.
pub fn signal(name: &str) -> Signal {
    Signal::from_str_name(&name.replace('+', "PLUS").replace('-', "MINUS")).unwrap_or(Signal::RuntimeDefault)
}

/// The name of a signal that was chosen.
pub fn signal_name(signal: Signal) -> Option<String> {
    let name = signal.as_str_name().replace("PLUS", "+").replace("MINUS", "-");
    (signal != Signal::RuntimeDefault).then_some(name)
}

/// Largest message accepted either way (16 MiB, as upstream's kubelet): a list of every container.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_named_as_in_pods() {
        for (name, number) in
            [("SIGABRT", 1), ("SIGTERM", 23), ("SIGRTMIN+15", 50), ("SIGRTMAX-14", 51), ("SIGRTMAX", 65)]
        {
            assert_eq!((signal(name) as i32, signal_name(signal(name)).as_deref()), (number, Some(name)));
        }
        assert_eq!((signal("SIGNONE"), signal_name(Signal::RuntimeDefault)), (Signal::RuntimeDefault, None));
    }
}
