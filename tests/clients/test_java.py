"""The Java SDK by itself: its own checks, what it ships, its README and its example.

What it promises with the others is in tests/conformance.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from zipfile import ZipFile

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message

from headrace.cli.authority import Authority
from tests.clients.shell import ROOT, run, version
from tests.e2e.harness import MODEL, Controller
from tests.tools import needed

JAVA = ROOT / "client" / "java"

_FENCE = re.compile(r"^```java\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_RULES = {"buf/validate/validate.proto"}

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.toolchain,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (shutil.which("mvn") and shutil.which("java")), reason="there is no Java with Maven"
    ),
]


@pytest.fixture(scope="module")
def built() -> Path:
    """The library's jar, once all of its own checks have passed: they fail the build."""
    run("mvn", "-q", "-B", "verify", folder=JAVA)
    return JAVA / "sdk" / "target" / f"headrace-{version()}.jar"


def descriptors(protos: Path, image: Path) -> dict[str, Message]:
    """The files of the contract below a directory, without options and with what they import."""
    run(needed("buf"), "build", "--exclude-source-info", "-o", str(image), folder=protos)
    files = FileDescriptorSet.FromString(image.read_bytes()).file
    found: dict[str, Message] = {}
    for file in files:
        if file.name.startswith("headrace/"):
            kept = [name for name in file.dependency if name not in _RULES]
            file.ClearField("dependency")
            file.dependency.extend(kept)
            without_rules(file)
            found[file.name] = file
    return found


def without_rules(message: Message) -> None:
    """Clear what in its options is an extension, wherever they are."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        each = value if field.is_repeated else [value]
        for part in each:
            if field.name != "options":
                without_rules(part)
                continue
            for option, _ in part.ListFields():
                if option.is_extension:
                    part.ClearExtension(option)
            part.DiscardUnknownFields()
        if field.name == "options" and not value.ByteSize():
            message.ClearField("options")


def test_the_jar_ships_the_contract_as_it_is_but_for_its_rules(built: Path, tmp_path: Path) -> None:
    with ZipFile(built) as jar:
        names = jar.namelist()
        jar.extractall(tmp_path / "jar", [name for name in names if name.endswith(".proto")])
    shipped = descriptors(tmp_path / "jar", tmp_path / "shipped.binpb")
    assert shipped == descriptors(ROOT, tmp_path / "ours.binpb")
    assert len(shipped) == len([*(ROOT / "protos" / "headrace").rglob("*.proto")])
    assert {name.split("/")[0] for name in names} == {"META-INF", "dev", "headrace"}
    assert "META-INF/LICENSE" in names


def test_its_version_is_that_of_the_project(built: Path) -> None:
    with ZipFile(built) as jar:
        manifest = jar.read("META-INF/MANIFEST.MF").decode()
    assert f"Implementation-Version: {built.stem.removeprefix('headrace-')}\r\n" in manifest


def test_the_readme_runs(built: Path, controller: Controller, tmp_path: Path) -> None:
    tls = tmp_path / "tls"
    tls.mkdir()
    Authority(tls).issue("client", ("somebody",), 1, server=False)
    parts = _FENCE.findall((JAVA / "README.md").read_text(encoding="utf-8"))
    (tmp_path / "Readme.java").write_text(program(*parts), encoding="utf-8")
    libraries = f"{built}:{JAVA}/examples/target/lib/*"
    command = ("java", "-cp", libraries, "Readme.java")
    told = run(*command, folder=tmp_path, host=controller.target)
    answers = told.split("----\n")
    assert len(answers) == len(parts)
    assert answers[0].strip()
    assert "FINISH_REASON_LENGTH, 8 tokens" in told
    assert (tmp_path / "rose.png").read_bytes().startswith(b"\x89PNG")
    assert f"{MODEL}\n" in told
    assert "[28120, 905]" in told
    assert "sampling.temperature: must be" in told
    assert re.fullmatch(r"[0-9a-f]{32}\s*", answers[-1])


def program(hello: str, *parts: str) -> str:
    """The README in one program: the one that it begins with, and what goes on with its client."""
    texts = [hello.replace("public class Hello", "static class Hello")]
    for number, part in enumerate(parts):
        takes = "HeadraceClient client, StreamCompletionRequest request"
        texts.append(f"static void part{number}({takes}) throws Exception {{\n{part}\n}}\n")
    lines = "".join(texts).splitlines()
    imports = {line for line in lines if line.startswith("import ")}
    calls = (
        f'System.out.println("----"); part{number}(client, request);'
        for number in range(len(parts))
    )
    return "\n".join(
        [
            *sorted(imports),
            "public class Readme {",
            *(line for line in lines if line not in imports),
            "public static void main(String[] arguments) throws Exception {",
            "Hello.main(arguments);",
            "var request = StreamCompletionRequest.newBuilder()",
            f'.setModel("{MODEL}").setPrompt("Once upon a time").setMaxTokens(8).build();',
            "try (HeadraceClient client = HeadraceClient.create()) {",
            *calls,
            "}}}",
        ]
    )


def test_the_example_runs(built: Path, controller: Controller) -> None:
    jar = built.parents[2] / "examples" / "target" / "examples.jar"
    told = run("java", "-jar", str(jar), folder=JAVA, host=controller.target)
    assert told.startswith(f"{MODEL}, 134")
    assert re.search(r"^FINISH_REASON_\w+, \d+ tokens, trace [0-9a-f]{32}$", told, re.MULTILINE)
