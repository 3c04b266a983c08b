"""Freeze the contract of a commit, for the test that its clients go on to work.

`make freeze` puts what protos/ are at a commit (COMMIT, else HEAD) into tests/compat, as a set of
descriptors named by version and commit, and its checksum beside it. What is frozen is never made
again: a set that is there already is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FROZEN = ROOT / "tests" / "compat"
SUMS = FROZEN / "SHA256SUMS"


def git(*arguments: str) -> bytes:
    """What git says. Raises CalledProcessError."""
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, stdout=subprocess.PIPE
    ).stdout


def build(commit: str, target: Path) -> None:
    """Write the descriptors of a commit's contract."""
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(fileobj=io.BytesIO(git("archive", commit, "buf.yaml", "protos"))) as tar:
            tar.extractall(scratch, filter="data")
        buf = Path(sys.executable).with_name("buf")
        command = [str(buf), "build", "--exclude-source-info", "-o", str(target)]
        subprocess.run(command, check=True, cwd=scratch)


def main() -> int:
    parser = argparse.ArgumentParser(description="Freeze the contract of a commit.")
    parser.add_argument("commit", nargs="?", default="HEAD")
    commit = git("rev-parse", "--short=7", parser.parse_args().commit).decode().strip()
    project = tomllib.loads(git("show", f"{commit}:pyproject.toml").decode())["project"]
    target = FROZEN / f"v{project['version']}-{commit}.binpb"
    sums = SUMS.read_text(encoding="utf-8") if SUMS.exists() else ""
    if target.exists() or target.name in sums:
        print(f"freeze: {target.name} is frozen already, and stays as it is", file=sys.stderr)
        return 1
    build(commit, target)
    checksum = hashlib.sha256(target.read_bytes()).hexdigest()
    if checksum in sums:
        target.unlink()
        print(f"freeze: nothing has changed of the contract up to {commit}", file=sys.stderr)
        return 1
    with SUMS.open("a", encoding="utf-8") as file:
        file.write(f"{checksum}  {target.name}\n")
    print(f"freeze: {target.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
