"""The TypeScript SDK: its style, its unit tests, what is published of it, and its README."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest

from headrace.cli.authority import Authority
from tests.clients.shell import ROOT, version
from tests.clients.typescript import FOLDER, build, run
from tests.e2e.harness import MODEL, Controller

pytestmark = [pytest.mark.toolchain, pytest.mark.timeout(300)]

EXAMPLES = re.findall(
    r"^```js\n(.*?)^```$",
    (FOLDER / "README.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)
_SETTINGS = {
    "compilerOptions": {
        "strict": True,
        "checkJs": True,
        "noEmit": True,
        "module": "nodenext",
        "target": "es2022",
        "lib": ["es2023", "dom", "dom.iterable", "dom.asynciterable"],
        "types": ["node"],
    }
}


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """Once."""
    build()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's project that has installed what would be published, and nothing of this
    repository."""
    folder = tmp_path_factory.mktemp("project")
    run("npm", "pack", "--ignore-scripts", "--pack-destination", str(folder))
    (archive,) = folder.glob("*.tgz")
    modules = folder / "node_modules"
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    modules.mkdir()
    (folder / "package").rename(modules / "headrace")
    manifest = json.loads((modules / "headrace" / "package.json").read_text(encoding="utf-8"))
    for name in (*manifest["dependencies"], "@types/node", "undici-types"):
        link = modules / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(FOLDER / "node_modules" / name)
    return folder


def test_style() -> None:
    run("npm", "run", "--silent", "check")


def test_unit_tests() -> None:
    assert re.search(r"^# pass \d{2,}$", run("npm", "test"), re.MULTILINE)


def test_it_is_of_the_same_version_and_licence() -> None:
    manifest = json.loads((FOLDER / "package.json").read_text(encoding="utf-8"))
    assert (manifest["version"], manifest["license"]) == (version(), "Apache-2.0")
    assert (FOLDER / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_what_is_published_needs_nothing_else(project: Path) -> None:
    package = project / "node_modules" / "headrace"
    assert {path.name for path in package.iterdir()} == {
        *("LICENSE", "README.md", "dist", "package.json")
    }
    assert (package / "dist" / "gen" / "headrace" / "v1" / "completion_pb.js").exists()
    assert not [path for path in package.rglob("*.js") if "buf/validate" in path.read_text()]
    program = 'for (const part of ["", "/node", "/web", "/v1"]) await import(`headrace${part}`)'
    run("node", "--input-type=module", "--eval", program, folder=project)


def test_the_readme_is_true(project: Path, controller: Controller) -> None:
    authority = Authority(project)
    authority.issue("me", ("somebody",), 1, server=False)
    names = []
    for number, example in enumerate(EXAMPLES):
        names.append(f"example{number}.mjs")
        (project / names[-1]).write_text(example, encoding="utf-8")
    settings = {**_SETTINGS, "files": names}
    (project / "tsconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    run(str(FOLDER / "node_modules" / ".bin" / "tsc"), "-p", ".", folder=project)
    told = [run("node", name, folder=project, host=controller.target) for name in names]
    tour, stream, image, error, *others = told
    assert " Paris" in tour
    assert MODEL in tour
    assert re.search(r"\n LENGTH 32 tokens\n$", stream)
    assert re.fullmatch(r"image/png \d+ bytes, seed 7n\n", image)
    assert (project / "rose-0.png").read_bytes().startswith(b"\x89PNG")
    assert error == f"did you mean {MODEL}\n"
    assert others == ["", ""]


def test_the_example(controller: Controller) -> None:
    asked = ("node", "examples/complete.mjs", MODEL, "Name a colour.")
    output = run(*asked, host=controller.target)
    assert re.search(r"\n(LENGTH|END_OF_TEXT), \d+ tokens, trace [0-9a-f]{32}\n$", output)
