"""`python k8s/krew/build.py --uri URL DIR`: the archive that krew installs, and the manifest that names it by digest.

DIR gets `kubectl-localmodel.tar.gz`, the same bytes whenever its contents are the same, and `localmodel.yaml`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import sys
import tarfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ARCHIVE = "kubectl-localmodel.tar.gz"
FILES = {"kubectl-localmodel": HERE / "kubectl-localmodel", "LICENSE": ROOT / "LICENSE"}


def archive() -> bytes:
    """The same bytes on every machine: no times, no owners."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, path in sorted(FILES.items()):
            content = path.read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755 if name == "kubectl-localmodel" else 0o644
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), mtime=0)


def manifest(uri: str, digest: str) -> str:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return (HERE / "localmodel.yaml.in").read_text().format(version=version, uri=uri, sha256=digest)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[2].strip())
    parser.add_argument("--uri", required=True, help=f"where {ARCHIVE} will be downloaded from")
    parser.add_argument("directory", type=Path, metavar="DIR")
    args = parser.parse_args()
    content = archive()
    args.directory.mkdir(parents=True, exist_ok=True)
    (args.directory / ARCHIVE).write_bytes(content)
    (args.directory / "localmodel.yaml").write_text(manifest(args.uri, hashlib.sha256(content).hexdigest()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
