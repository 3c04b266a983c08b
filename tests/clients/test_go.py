"""The Go SDK: in order, up to date with the contract, whole by itself, and as its README
says. What its calls do is tested in `client/go` itself and in tests/conformance."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.clients import shell
from tests.clients.shell import ROOT, version
from tests.e2e.harness import MODEL, Controller
from tests.tools import needed

SDK = ROOT / "client" / "go"
run = partial(shell.run, folder=SDK)

pytestmark = [
    pytest.mark.toolchain,
    pytest.mark.timeout(600),  # where nothing has been built yet
    pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go"),
]

_PROGRAM = """
package main

import (
	"fmt"

	"headrace.dev/go/headrace"
)

func main() {
	_, err := headrace.New("gpu.example", headrace.WithToken("hr_x"))
	fmt.Println(headrace.ReasonOf(err), headrace.Version)
}
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module as the Go command packs it: its own files, and nothing around them."""
    copy = tmp_path_factory.mktemp("go") / "module"
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "-co", "--exclude-standard"]
    for name in run(*command).split("\0"):
        if name and (SDK / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(SDK / name, copy / name)
    return copy


def test_it_is_formatted_and_its_module_file_in_order() -> None:
    assert run("gofmt", "-l", ".") == ""
    assert run("go", "mod", "tidy", "-diff") == ""
    assert run("go", "mod", "verify").startswith("all modules verified")


def test_its_unit_tests_pass() -> None:
    assert re.search(r"^ok\s+headrace.dev/go/headrace\s", run("go", "test", "./..."), re.MULTILINE)


def test_its_generated_code_is_what_the_contract_gives(tmp_path: Path) -> None:
    run(needed("buf"), "generate", "--output", tmp_path)
    (generated, checked_in) = (
        {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.pb.go")}
        for folder in (tmp_path / "headrace" / "v1", SDK / "headrace" / "v1")
    )
    stale = {
        name
        for name in generated.keys() | checked_in.keys()
        if generated.get(name) != checked_in.get(name)
    }
    assert generated
    assert not stale, "run `go generate ./...` in client/go, with buf on the PATH"


def test_the_module_is_whole_and_has_no_faults(published: Path) -> None:
    run("go", "vet", "./...", folder=published)
    assert (published / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert f'const Version = "{version()}"' in (published / "headrace" / "doc.go").read_text()


def test_a_program_of_ones_own_gets_it_as_the_readme_says(published: Path, tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text(_PROGRAM)
    run("go", "mod", "init", "example.com/mine", folder=tmp_path)
    readme = (SDK / "README.md").read_text(encoding="utf-8")
    (install,) = re.findall(r"```console\n(\$ go mod edit.*?)```", readme, re.DOTALL)
    assert f"headrace.dev/go@v{version()} " in install
    for command in re.findall(r"^\$ (.+)$", install, re.MULTILINE):
        words = command.replace("/path/to/the/checkout/client/go", str(published)).split()
        run(*words, folder=tmp_path)
    assert run("go", "run", ".", folder=tmp_path) == f"headrace: INVALID_REQUEST {version()}\n"
    wanted = run("go", "list", "-m", "all", folder=tmp_path)
    assert "protovalidate" not in wanted


def test_the_code_of_the_readme_is_that_of_the_examples() -> None:
    examples = (SDK / "headrace" / "example_test.go").read_text(encoding="utf-8")
    whole = "\n".join(line.strip() for line in examples.splitlines())
    readme = (SDK / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```go\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    for block in blocks:
        assert "\n".join(line.strip() for line in block.splitlines()) in whole, block


def test_the_examples_work_at_a_controller(controller: Controller, tmp_path: Path) -> None:
    host = controller.target
    told = run("go", "test", "-count=1", "-v", "-run=AtAController", "./headrace", host=host)
    assert "--- PASS: TestTheExamplesAtAController" in told
    assert "is it one of these: smollm2:135m" in told
    assert "image/png 64 64" in told
    assert re.search(rf"^{MODEL} \d+$", told, re.MULTILINE)
    assert len(set(re.findall(r"trace ([0-9a-f]{32})$", told, re.MULTILINE))) == 2

    text = run("go", "run", "./examples/complete", "-max-tokens=4", "Once upon a time", host=host)
    assert text.splitlines()[-1] == "(FINISH_REASON_LENGTH, 4 tokens)"
    picture = tmp_path / "rose.png"
    assert run("go", "run", "./examples/image", "-output", picture, "a red rose", host=host)
    assert picture.read_bytes().startswith(b"\x89PNG")
