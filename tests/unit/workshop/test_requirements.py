"""What pyproject.toml asks for, constraints.txt pins, and the generated code needs agree."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.kernels import tools

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [
    Requirement(text)
    for texts in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in texts
]


def pins() -> dict[str, list[str]]:
    """The versions of each name: several where platforms differ."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("#"):
            continue
        pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)(; sys_platform [!=]= '\w+')?", line)
        assert pin is not None, f"constraints.txt holds more than name==version: {line}"
        found.setdefault(canonicalize_name(pin[1]), []).append(pin[2])
    return found


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_each_requirement_has_a_pin_that_satisfies_it(requirement: Requirement) -> None:
    if requirement.name == PROJECT["name"]:
        assert requirement.extras <= PROJECT["optional-dependencies"].keys()
        return
    versions = pins()[canonicalize_name(requirement.name)]
    assert all(requirement.specifier.contains(version) for version in versions)


def test_the_bare_install_brings_the_sdk_alone() -> None:
    assert {Requirement(text).name for text in PROJECT["dependencies"]} == {
        "googleapis-common-protos",
        "grpcio",
        "grpcio-health-checking",
        "opentelemetry-api",
        "protobuf",
    }


@pytest.mark.parametrize(
    ("package", "source", "pattern"),
    [
        ("protobuf", "completion_pb2.py", r"# Protobuf Python Version: ([\d.]+)"),
        ("grpcio", "completion_pb2_grpc.py", r"GRPC_GENERATED_VERSION = '([\d.]+)'"),
    ],
)
def test_the_floors_are_those_of_the_generated_code(
    package: str, source: str, pattern: str
) -> None:
    text = (ROOT / "client/python/headrace/v1" / source).read_text(encoding="utf-8")
    needed = re.search(pattern, text)
    assert needed is not None
    asked = next(r for r in REQUIREMENTS if r.name == package).specifier

    assert f">={needed[1]}" in {str(clause) for clause in asked}


def test_the_kernels_are_asked_for_and_built_with_the_versions_that_are_tested() -> None:
    text = (ROOT / "kernels" / "pyproject.toml").read_text(encoding="utf-8")
    kernels = tomllib.loads(text)
    project = kernels["project"]
    asked = [Requirement(each) for each in PROJECT["optional-dependencies"]["kernels"]]
    mlx = pins()["mlx"][0]

    assert [f"{each.name}{each.specifier}" for each in asked] == [
        f"{project['name']}=={project['version']}"
    ]
    assert project["dependencies"] == [f"mlx=={mlx}"]
    assert f'MLX_VERSION = "{mlx}"\n' in (
        ROOT / "kernels" / "headrace_kernels" / "__init__.py"
    ).read_text(encoding="utf-8")
    for needed in map(Requirement, kernels["build-system"]["requires"]):
        assert str(needed.specifier) == f"=={pins()[canonicalize_name(needed.name)][0]}"
    assert {str(Requirement(tool).name) for tool in tools()} == {
        *(Requirement(each).name for each in kernels["build-system"]["requires"]),
        *("cmake", "ninja"),
    } - {"mlx"}


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [
        ("linux", "x86_64", True),
        ("linux", "aarch64", True),
        ("linux", "riscv64", False),
        ("darwin", "arm64", False),
    ],
)
def test_the_kernels_are_asked_for_where_they_have_wheels(
    system: str, machine: str, wanted: bool
) -> None:
    (asked,) = (Requirement(each) for each in PROJECT["optional-dependencies"]["kernels"])
    assert asked.marker is not None

    assert asked.marker.evaluate({"sys_platform": system, "platform_machine": machine}) is wanted
