"""Generate the Python stubs from protos/, or with --check tell whether they are up to date.

buf drives local plugins that live in an environment of their own (.venv-proto, made on demand
from proto-requirements.txt). The result is moved to where the packages want it, so that no
top-level package `buf` is shipped. Never edits protos/ and never touches hand-written files.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "scripts" / "proto-requirements.txt"
TOOLS = ROOT / ".venv-proto"
PACKAGES = Path("client/python")
VENDORED = "headrace.third_party"

_MODULE_FROM_BUF = re.compile(r"(?<![\w./])buf\.validate(?=\.validate_pb2'| import )")


def relocate(generated: Mapping[PurePosixPath, str]) -> dict[PurePosixPath, str]:
    """Map protoc's files to those to be checked in, both keyed by path below client/python.

    buf.validate moves under headrace.third_party and loses its type stubs (nobody calls it, the
    generated code only imports it); gRPC modules without a service are dropped; each package
    gets an `__init__.py`.
    """
    result: dict[PurePosixPath, str] = {}
    for path, text in generated.items():
        vendored = path.parts[0] == "buf"
        if "_pb2_grpc" in path.name and "Stub" not in text:
            continue
        if vendored and path.suffix == ".pyi":
            continue
        target = PurePosixPath(*VENDORED.split("."), path) if vendored else path
        result[target] = _MODULE_FROM_BUF.sub(f"{VENDORED}.buf.validate", text)
    packages = {parent for path in result for parent in path.parents if len(parent.parts) > 1}
    for package in packages:
        result[package / "__init__.py"] = '"""Generated code; see scripts/proto.py."""\n'
    return result


def owned(root: Path) -> set[PurePosixPath]:
    """List the checked-in files that this script answers for, relative to root."""
    files: Iterable[Path] = [
        *(root / "headrace" / "v1").glob("*.py*"),
        *(root / "headrace" / "third_party").rglob("*.py*"),
    ]
    return {PurePosixPath(path.relative_to(root)) for path in files if path.is_file()}


def differences(wanted: Mapping[PurePosixPath, str], root: Path) -> list[PurePosixPath]:
    """List, sorted, the files below root that are missing, stale or left over."""
    have = owned(root)
    stale = {
        path
        for path, text in wanted.items()
        if path not in have or (root / path).read_text(encoding="utf-8") != text
    }
    return sorted(stale | (have - wanted.keys()))


def generate() -> dict[PurePosixPath, str]:
    """Run buf on protos/ and return the files to be checked in."""
    buf = shutil.which("buf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if buf is None:
        sys.exit("proto: buf is missing; `make install` brings it (PyPI's buf-bin)")
    _prepare_tools()
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [buf, "generate", "--output", scratch],
            check=False,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode != 0:
            sys.exit(f"proto: buf generate failed\n{done.stderr}")
        out = Path(scratch, "build", "proto")
        return relocate(
            {
                PurePosixPath(path.relative_to(out)): path.read_text(encoding="utf-8")
                for path in out.rglob("*.py*")
            }
        )


def _prepare_tools() -> None:
    """Make .venv-proto, unless the one that is there has these very requirements."""
    requirements = REQUIREMENTS.read_text(encoding="utf-8")
    stamp = TOOLS / "requirements.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == requirements:
        return
    print(f"proto: installing the generators into {TOOLS.name}", file=sys.stderr)
    venv.create(TOOLS, clear=True, with_pip=True)
    pip = [str(TOOLS / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "-r", str(REQUIREMENTS)], check=True)
    stamp.write_text(requirements, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when stale")
    check: bool = parser.parse_args().check

    wanted = generate()
    root = ROOT / PACKAGES
    changed = differences(wanted, root)
    if check:
        for path in changed:
            print(f"proto: {PACKAGES / path} is not what protos/ generate", file=sys.stderr)
        if changed:
            print("proto: run `make proto` and check the result in", file=sys.stderr)
        return 1 if changed else 0
    for path in changed:
        target = root / path
        if path in wanted:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(wanted[path], encoding="utf-8")
        else:
            target.unlink()
    print(f"proto: {len(wanted)} files, {len(changed)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
