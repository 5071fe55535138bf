//! The runtime alone, with pods that have only a loopback interface: for tests, measurements and
//! `crictl`. The cluster's runtime is part of `isopod`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use network::{PodAddresses, PodAttachment, PodNetwork};
use tokio_util::sync::CancellationToken;

struct Loopback;

#[async_trait::async_trait]
impl PodNetwork for Loopback {
    async fn attach(&self, _: &PodAttachment) -> Result<PodAddresses> {
        Ok(PodAddresses { ips: vec![IpAddr::from([127, 0, 0, 1])], gateway: None })
    }

    async fn detach(&self, _: &PodAttachment) -> Result<()> {
        Ok(())
    }

    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn set_pod_cidr(&self, _: &str) {}
}

const USAGE: &str = "usage: isopod-runtime serve|import|clean BASE CGROUP_ROOT [ARCHIVE]
  serve   CRI on BASE/runtime.sock until SIGTERM or Ctrl-C
  import  the images of ARCHIVE
  clean   every pod under BASE and CGROUP_ROOT";

fn main() -> Result<()> {
    runtime::entrypoint(std::env::args_os());
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [verb, base, cgroup_root, rest @ ..] = args.as_slice() else { bail!(USAGE) };
    let base = PathBuf::from(base);
    let config = runtime::Config {
        root: base.join("root"),
        state: base.join("state"),
        socket: base.join("runtime.sock"),
        cgroup_root: cgroup_root.clone(),
        network: Arc::new(Loopback),
        streaming_listen: ([127, 0, 0, 1], 0).into(),
        shim_exe: "/proc/self/exe".into(),
        builtin_images: Default::default(),
    };
    let tokio = tokio::runtime::Runtime::new()?;
    match verb.as_str() {
        "serve" => tokio.block_on(async {
            let shutdown = CancellationToken::new();
            let stop = shutdown.clone();
            tokio::spawn(async move {
                let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
                tokio::select! { _ = terminate.recv() => {}, _ = tokio::signal::ctrl_c() => {} }
                stop.cancel();
                std::io::Result::Ok(())
            });
            runtime::serve(config, shutdown).await
        }),
        "clean" => tokio.block_on(runtime::remove_all(config)),
        "import" => {
            let archive = rest.first().context(USAGE)?;
            for image in runtime::Images::open(&config.root)?.import(archive.as_ref())? {
                println!("{} {}", image.id, image.tags.join(" "));
            }
            Ok(())
        }
        _ => bail!(USAGE),
    }
}
