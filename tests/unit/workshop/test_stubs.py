"""scripts/proto.py puts generated code where the packages want it, and sees what is stale."""

from pathlib import Path, PurePosixPath

import pytest

from scripts.proto import differences, relocate

IMPORT = "from buf.validate import validate_pb2 as buf_dot_validate_dot_validate__pb2\n"
GENERATED = {
    PurePosixPath("headrace/v1/a_pb2.py"): IMPORT,
    PurePosixPath("headrace/v1/a_pb2.pyi"): "class A: ...\n",
    PurePosixPath("headrace/v1/a_pb2_grpc.py"): "import grpc\n",
    PurePosixPath("headrace/v1/b_pb2_grpc.py"): "class BStub: ...\n",
    PurePosixPath("buf/validate/validate_pb2.py"): (
        "# source: buf/validate/validate.proto\nbuild(DESCRIPTOR, 'buf.validate.validate_pb2')\n"
    ),
    PurePosixPath("buf/validate/validate_pb2.pyi"): "class Rule: ...\n",
}
VALIDATE = PurePosixPath("headrace/third_party/buf/validate/validate_pb2.py")


def test_no_top_level_buf_package_is_shipped() -> None:
    files = relocate(GENERATED)

    assert {path.parts[0] for path in files} == {"headrace"}
    assert files[PurePosixPath("headrace/v1/a_pb2.py")] == (
        "from headrace.third_party.buf.validate import validate_pb2"
        " as buf_dot_validate_dot_validate__pb2\n"
    )
    assert files[VALIDATE] == (
        "# source: buf/validate/validate.proto\n"
        "build(DESCRIPTOR, 'headrace.third_party.buf.validate.validate_pb2')\n"
    )


def test_only_what_is_used_is_checked_in() -> None:
    files = relocate(GENERATED)

    assert sorted(path.as_posix() for path in files) == [
        "headrace/third_party/__init__.py",
        "headrace/third_party/buf/__init__.py",
        "headrace/third_party/buf/validate/__init__.py",
        "headrace/third_party/buf/validate/validate_pb2.py",
        "headrace/v1/__init__.py",
        "headrace/v1/a_pb2.py",
        "headrace/v1/a_pb2.pyi",
        "headrace/v1/b_pb2_grpc.py",
    ]


@pytest.fixture
def checked_in(tmp_path: Path) -> Path:
    for path, text in relocate(GENERATED).items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return tmp_path


def test_an_up_to_date_tree_differs_in_nothing(checked_in: Path) -> None:
    (checked_in / "headrace" / "errors.py").write_text("", encoding="utf-8")

    assert differences(relocate(GENERATED), checked_in) == []


def test_missing_edited_and_left_over_files_differ(checked_in: Path) -> None:
    stubs = checked_in / "headrace" / "v1"
    (stubs / "a_pb2.py").write_text("# edited\n", encoding="utf-8")
    (stubs / "a_pb2.pyi").unlink()
    (stubs / "removed_pb2.py").write_text("", encoding="utf-8")

    assert [path.name for path in differences(relocate(GENERATED), checked_in)] == [
        "a_pb2.py",
        "a_pb2.pyi",
        "removed_pb2.py",
    ]
