//! Debian's containerd on a test's [`Host`], with everything of its own below the test's directory: the
//! runtime that is not ours, for what must hold on every runtime.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Child;

use serde_json::json;

use crate::{Host, eventually, image_archive};

const PAUSE: &str = "isopod.local/pause:test";

/// Pods get addresses on a bridge without a way out. The caller ends the process.
pub struct Containerd {
    pub process: Child,
    pub socket: PathBuf,
}

impl Containerd {
    pub fn start(host: &Host) -> Containerd {
        for (path, package) in [
            ("/usr/bin/containerd", "containerd"),
            ("/usr/sbin/runc", "runc"),
            ("/usr/lib/cni/bridge", "containernetworking-plugins"),
        ] {
            assert!(Path::new(path).exists(), "{path} is missing: install Debian's package {package}");
        }
        configure(host).expect("write containerd's configuration");
        let mut command = host.command("containerd");
        let process = host.spawn("containerd", command.arg("--config").arg(host.path("containerd.toml")));
        let containerd = Containerd { process, socket: host.path("containerd.sock") };
        eventually("containerd listens", || {
            let socket = fs::metadata(&containerd.socket).is_ok_and(|file| file.file_type().is_socket());
            socket.then_some(()).ok_or_else(|| host.log("containerd"))
        });
        let pause = host.path("pause.tar");
        image_archive(&pause, PAUSE, &["sleep", "1000000"]);
        containerd.import(host, &pause);
        containerd
    }

    /// Imports the images of an archive for CRI.
    pub fn import(&self, host: &Host, archive: &Path) {
        let mut ctr = host.command("ctr");
        ctr.arg("--address").arg(&self.socket).args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
        host.run(&mut ctr);
    }
}

fn configure(host: &Host) -> std::io::Result<()> {
    let base = host.directory.path().display().to_string();
    let config = include_str!("containerd.toml").replace("BASE", &base).replace("PAUSE", PAUSE);
    fs::write(host.path("containerd.toml"), config)?;
    fs::create_dir(host.path("cni"))?;
    let addresses = json!({
        "type": "host-local", "dataDir": host.path("ipam"),
        "ranges": [[{ "subnet": "10.42.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }],
    });
    let network = json!({
        "cniVersion": "0.4.0", "name": "test",
        "plugins": [{ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": addresses }],
    });
    fs::write(host.path("cni/10-test.conflist"), network.to_string())
}
