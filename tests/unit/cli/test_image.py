"""`headrace image` against a scripted controller: files, options, and what a terminal shows."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image
from rich.console import Console

from headrace.cli.image import parse_loras
from headrace.cli.outputs import Outputs, slug
from headrace.cli.picture import CannotShow, show
from headrace.cli.terminal import Way, answer_of
from headrace.errors import ModelNotFound, UnsupportedParameter
from headrace.v1 import common_pb2, image_pb2, model_pb2
from tests.unit.cli.running import Run
from tests.unit.sdk import fake as say
from tests.unit.sdk.fake import Fake

Colours = Literal["standard", "256", "truecolor"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written to a directory of their own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)


def test_a_picture_lies_in_a_file_named_after_its_prompt(fake: Fake, headrace: Run) -> None:
    code, out, err = headrace("image", "A red", "rose!", "--seed", "7")
    assert (code, out) == (0, "a-red-rose.png\n")
    assert Path("a-red-rose.png").read_bytes() == say.ROSE
    assert err.startswith(
        "waiting, 2 ahead\nloading emoji:64\nreading the prompt\ndrawing\n2×2 · 8"
    )
    assert "8 steps · seed 7 · 1.50 s · trace " in err
    (request,) = fake.requests
    assert request == image_pb2.StreamImageRequest(model="emoji:64", prompt="A red rose!", seed=7)

    assert headrace("image", "a red rose")[1] == "a-red-rose-2.png\n"
    assert headrace("image", "-m", "m", stdin="A red rose\n")[1] == "a-red-rose-3.png\n"


def test_every_option_reaches_the_request(fake: Fake, headrace: Run) -> None:
    Path("in.png").write_bytes(say.ROSE)
    fake.images = [say.image_started(), *say.image_files(say.ROSE, say.ROSE)]
    code, out, _ = headrace(
        *("image", "a rose", "-m", "m:1", "-o", "out.webp", "--size", "64x32", "--steps", "4"),
        *("--guidance", "0", "--negative", "thorns", "--input", "in.png", "--strength", "0.5"),
        *("--count", "2", "--lora", "ink:0.5", "--lora", "ns:oil", "--no-parameters"),
    )
    assert (code, out) == (0, "out-1.webp\nout-2.webp\n")
    expected = image_pb2.StreamImageRequest(
        model="m:1",
        prompt="a rose",
        negative_prompt="thorns",
        width=64,
        height=32,
        steps=4,
        guidance=0,
        count=2,
        strength=0.5,
        format=image_pb2.IMAGE_FORMAT_WEBP,
        embed_parameters=False,
    )
    expected.input_images.add(data=say.ROSE)
    expected.loras.add(name="ink", scale=0.5)
    expected.loras.add(name="ns:oil", scale=1)
    assert fake.requests == [expected]
    fake.images = say.DRAWN
    assert headrace("image", "a rose", "--size", "64")[0] == 0
    assert (fake.requests[-1].width, fake.requests[-1].height) == (64, 64)


def test_a_file_that_is_named_is_replaced_and_a_directory_gets_a_new_one(
    fake: Fake, headrace: Run
) -> None:
    Path("rose.png").write_bytes(b"old")
    assert headrace("image", "a rose", "-o", "rose.png")[1] == "rose.png\n"
    assert Path("rose.png").read_bytes() == say.ROSE
    Path("album").mkdir()
    assert headrace("image", "a rose", "-o", "album")[1] == "album/a-rose.png\n"
    assert not fake.requests[-1].HasField("format")


def test_as_json(fake: Fake, headrace: Run) -> None:
    code, out, _ = headrace("image", "a rose", "--json")
    answer = json.loads(out)
    assert code == 0
    (image,) = answer["images"]
    assert (image["path"], image["seed"], image["size_bytes"]) == ("a-rose.png", 7, len(say.ROSE))
    assert len(image["sha256"]) == 64
    assert (answer["model"], answer["resumed"], answer["timings"]["total"]) == ("emoji:64", 1, 1.5)


def test_the_picture_itself_is_standard_output(fake: Fake, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headrace.cli.main", "image", "a rose", "-o", "-"]
    ended = subprocess.run(command, capture_output=True, check=True)
    assert ended.stdout == say.ROSE
    assert not [*Path().iterdir()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say what to draw"),
        (("x", "-o", "a.gif"), ".gif is none of"),
        (("x", "-o", "a.png", "--format", "webp"), "does not go with"),
        (("x", "-o", "no/a.png"), "there is no directory no"),
        (("x", "-o", "no/"), "there is no directory no"),
        (("x", "-o", "-", "--json"), "cannot both be standard output"),
        (("x", "-o", "-", "--count", "2"), "takes one picture"),
        (("x", "--size", "big"), "no size such as"),
        (("x", "--size", "64x"), "no size such as"),
        (("x", "--count", "17"), "--count"),
        (("x", "--input", "none.png"), "does not exist"),
        (("x", "--preview"), "needs a terminal"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_drawn(
    arguments: tuple[str, ...], said: str, fake: Fake, headrace: Run
) -> None:
    code, out, err = headrace("image", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert fake.requests == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="/proc is Linux's")
def test_a_place_that_takes_no_file_is_told_before_anything_is_drawn(
    fake: Fake, headrace: Run
) -> None:
    code, _, err = headrace("image", "a rose", "-o", "/proc/rose.png")  # Not even root's.
    assert (code, fake.requests) == (2, [])
    assert "nothing can be written into /proc: " in err


def test_what_the_server_refuses_leaves_no_file(fake: Fake, headrace: Run) -> None:
    fake.images = [UnsupportedParameter("the model takes none; leave it out", field="guidance")]
    code, out, err = headrace("image", "a rose", "--guidance", "3")
    assert (code, out) == (2, "")
    assert "guidance: the model takes none" in err
    assert not [*Path().iterdir()]


def test_a_model_that_is_missing_is_pulled(fake: Fake, headrace: Run) -> None:
    class Once(list[object]):
        """Missing at first, there afterwards."""

        def __iter__(self) -> Iterator[object]:
            missing = not any(isinstance(r, model_pb2.StreamPullModelRequest) for r in asked)
            return iter([ModelNotFound("emoji:64")] if missing else say.DRAWN)

    asked = fake.requests
    fake.images = Once()
    progress = model_pb2.TransferProgress(phase=model_pb2.TRANSFER_PHASE_CONVERT, done_bytes=1)
    fake.transfer = [
        model_pb2.StreamPullModelResponse(progress=progress),
        model_pb2.StreamPullModelResponse(completed=say.model("emoji:64")),
    ]
    code, out, err = headrace("image", "a rose")
    assert (code, out) == (0, "a-rose.png\n")
    assert "converting emoji:64\n" in err


def test_show_tells_what_a_model_draws(fake: Fake, headrace: Run) -> None:
    traits = model_pb2.ImageTraits(
        width=512,
        height=512,
        size_step=16,
        min_size=256,
        max_size=1024,
        steps=4,
        max_steps=50,
        max_batch=1,
        max_input_images=2,
    )
    traits.strength = 0.5
    kind = common_pb2.MODEL_KIND_IMAGE
    fake.models["flux:4b"] = say.model("flux:4b", image=traits, kind=kind)
    code, out, _ = headrace("show", "flux:4b")
    assert code == 0
    assert "512×512 pixels unless told; sides of 256 to 1024 in steps of 16" in out
    assert "4 unless told, up to 50" in out
    assert "up to 2, strength 0.5 unless told" in out
    assert "context" not in out
    assert "chat template" not in out
    assert json.loads(headrace("show", "flux:4b", "--json")[1])["image"]["size_step"] == 16


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red rose!", "a-red-rose"),
        ("../../etc/passwd", "etc-passwd"),
        ("🌹", "image"),
        ("Straße nach Köln", "straße-nach-köln"),
        ("word " * 50, "-".join(["word"] * 9)),
        ("x" * 300, "x" * 48),
    ],
)
def test_names_of_files(prompt: str, name: str) -> None:
    assert slug(prompt) == name


def test_no_file_is_replaced_that_was_not_named(tmp_path: Path) -> None:
    outputs = Outputs("a rose", str(tmp_path), 3)
    (tmp_path / "a-rose-2.jpg").write_bytes(b"mine")
    paths = [outputs.write(b"new", index, "image/jpeg") for index in range(3)]
    assert [path.name for path in paths] == ["a-rose.jpg", "a-rose-3.jpg", "a-rose-4.jpg"]
    assert (tmp_path / "a-rose-2.jpg").read_bytes() == b"mine"


def test_a_colon_may_be_an_adapter_s_own() -> None:
    given = ("ink", "ink2:0.5", "team:oil", "team:oil2:-1")
    assert parse_loras(None, None, given) == {
        "ink": 1.0, "ink2": 0.5, "team:oil": 1.0, "team:oil2": -1.0
    }  # fmt: skip


PLAIN = {
    "TERM": "xterm-256color",
    "COLORTERM": "truecolor",
    "TERM_PROGRAM": "",
    "LC_TERMINAL": "",
    "KITTY_WINDOW_ID": "",
    "TMUX": "",
}


def shown(file: bytes, way: Way, colours: Colours = "truecolor") -> str:
    """What is written to a terminal of 100 columns."""
    terminal = io.StringIO()
    console = Console(
        file=terminal, force_terminal=True, color_system=colours, width=100, height=40, _environ={}
    )
    show(file, "image/png", console, way)
    return terminal.getvalue()


def test_half_blocks_in_the_colours_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(say.ROSE, Way.BLOCKS) == (
        "\x1b[38;2;255;0;0;48;2;0;0;255m▀\x1b[38;2;0;255;0;48;2;255;255;255m▀\x1b[0m\n"
    )
    assert shown(say.ROSE, Way.BLOCKS, "256").startswith("\x1b[38;5;196;48;5;21m▀")
    with pytest.raises(CannotShow, match="too few colours"):
        shown(say.ROSE, Way.BLOCKS, "standard")


def test_kitty_and_iterm2_get_the_file_and_sixel_the_pixels() -> None:
    kitty, iterm2, sixel = (shown(say.ROSE, way) for way in (Way.KITTY, Way.ITERM2, Way.SIXEL))
    assert b64encode(say.ROSE).decode() in kitty
    assert kitty.startswith("\x1b_Ga=T,f=100,q=2,c=24,r=12,m=0;")
    assert b64encode(say.ROSE).decode() in iterm2
    assert iterm2.startswith(f"\x1b]1337;File=inline=1;size={len(say.ROSE)};width=24;height=12;")
    assert sixel.startswith('\x1bP0;1;0q"1;1;216;216#0;2;')
    assert shown(say.ROSE, Way.NONE) == ""


def test_what_is_transparent_is_white() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (1, 2), (255, 0, 0, 0)).save(file, "PNG")
    assert "38;2;255;255;255;48;2;255;255;255m▀" in shown(file.getvalue(), Way.BLOCKS)


def test_what_is_no_picture_is_not_shown() -> None:
    for way in (Way.KITTY, Way.SIXEL, Way.BLOCKS):
        with pytest.raises(CannotShow, match="not shown: cannot identify image file"):
            shown(b"no picture", way)


def test_without_pillow_only_a_terminal_that_takes_files_shows_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert shown(say.ROSE, Way.KITTY).startswith("\x1b_Ga=T")
    assert shown(say.ROSE, Way.ITERM2).startswith("\x1b]1337;File=")
    for way in (Way.SIXEL, Way.BLOCKS):
        with pytest.raises(CannotShow, match="pip install pillow"):
            shown(say.ROSE, way)


_OWN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def on_terminal(answer: bytes, arguments: list[str], environment: dict[str, str]) -> str:
    """What a command writes to a terminal of its own that answers DA1 so, or not at all."""
    ours, theirs = pty.openpty()
    main = [sys.executable, "-m", "headrace.cli.main", *arguments]
    process = subprocess.Popen(
        [sys.executable, "-c", _OWN_TERMINAL, *main],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, **environment, "COLUMNS": "100"},
        start_new_session=True,
    )
    os.close(theirs)
    data, answered = b"", False
    with suppress(OSError), process:  # OSError is how a terminal on Linux ends
        while select.select([ours], [], [], 30)[0]:
            data += os.read(ours, 65536)
            if b"\x1b[c" in data and not answered:
                answered = True
                os.write(ours, answer)
    os.close(ours)
    assert process.wait(30) == 0, data
    return data.decode()


@pytest.mark.parametrize(
    ("answer", "more", "shown"),
    [
        (b"\x1b_Gi=31;OK\x1b\\\x1b[?62;c", {}, "\x1b_Ga=T"),
        (b"\x1b[?62;4c", {}, "\x1bP0;1;0q"),
        (b"\x1b[?62;4c", {"TMUX": "/tmp/tmux"}, "\x1bP0;1;0q"),
        (b"\x1b[?1;2c", {}, "▀"),
        (b"", {}, "▀"),
    ],
)
def test_a_terminal_is_asked_what_it_can(
    fake: Fake, answer: bytes, more: dict[str, str], shown: str
) -> None:
    text = on_terminal(answer, ["image", "a rose"], PLAIN | more)
    assert shown in text
    asked = "\x1b_Gi=31," in text
    assert asked is ("TMUX" not in more), "tmux would take the question for a title"
    assert "\x1b[?62" not in text.replace(answer.decode(), "", 1), "an answer is not shown"


def test_a_terminal_is_asked_once_for_all_pictures(fake: Fake) -> None:
    fake.images = [say.image_started(), *say.image_files(say.ROSE, say.ROSE)]
    text = on_terminal(b"\x1b[?62;4c", ["image", "a rose", "--count", "2"], PLAIN)
    assert text.count("\x1b[c") == 1
    assert text.count("\x1bP0;1;0q") == 2


def test_a_terminal_that_is_gone_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"typed ahead")
        theirs.shutdown(socket.SHUT_WR)
        assert answer_of(ours.fileno(), b"?", 60.0) == b"typed ahead"


def test_previews_are_shown_above_the_bar(fake: Fake) -> None:
    text = on_terminal(b"", ["image", "a rose", "--preview", "--show", "none"], PLAIN)
    assert "▀" in text
    assert "step 4/8" in text
    assert "2s left" in text
    assert fake.requests[0].preview.every_steps == 2
