"""A model on its way from a hub to an answer: the command line, a controller, and a server that
speaks the hub's HTTP."""

from __future__ import annotations

import json
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

from headrace_server.store import Store
from tests.e2e.harness import (
    ANSWER,
    PATIENCE,
    QUESTION,
    Controller,
    StartController,
    headrace,
    start_headrace,
)
from tests.hub import COMMIT, Fault, Repo, files_in, hub
from tests.integration.store.sources import partials

REPO = "acme/SmolLM2-135M-Instruct-4bit"
NAME = "smollm2-135m-instruct-4bit:latest"
GREEDY = ("--temperature", "0", "--max-tokens", "12")
HUNG = 5_000_000


def downloads(controller: Controller) -> list[psutil.Process]:
    """The processes that download for a controller."""
    found = []
    for child in psutil.Process(controller.pid).children():
        with suppress(psutil.Error):
            if "headrace_server.store.sources" in child.cmdline():
                found.append(child)
    return found


def test_a_model_of_the_hub_answers(
    smollm2_dir: Path, tmp_path: Path, start: StartController
) -> None:
    home = tmp_path / "home"
    with hub() as server:
        server.repos[REPO] = Repo(files_in(smollm2_dir), token="hf_secretsecret", gated=True)
        extra = {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": "hf_secretsecret",
        }
        controller = start(home=home, extra=extra)

        # Whoever asked for it goes away: nobody downloads any more.
        server.fail("/blobs/", Fault(hang=HUNG))
        impatient = start_headrace(controller, "pull", f"hf:{REPO}")
        until = time.monotonic() + PATIENCE
        while server.sent < HUNG and time.monotonic() < until:
            time.sleep(0.02)  # noqa: TID251 - nothing tells of it
        (download,) = downloads(controller)
        impatient.send_signal(signal.SIGINT)
        impatient.communicate(timeout=PATIENCE)
        assert psutil.wait_procs([download], PATIENCE)[1] == []
        kept = max(partials(home).values())
        assert 0 < kept <= HUNG

        pulled = headrace(controller, "pull", f"https://huggingface.co/{REPO}")
        assert pulled.stdout.startswith(f"{NAME} is in the store, ")
        assert f"downloading https://huggingface.co/{REPO}" in pulled.stderr
        assert server.starts("/blobs/") == [0, kept]
        shown = json.loads(headrace(controller, "show", NAME, "--json").stdout)
        assert shown["source"] == f"hf:{REPO}@{COMMIT}"
        answer = headrace(controller, "run", NAME, QUESTION, *GREEDY)
        assert ANSWER.startswith(answer.stdout.strip())
        assert answer.stdout.strip()

        missing = headrace(controller, "pull", "hf:acme/none", check=False)
        assert missing.returncode == 3
        assert "no repository acme/none" in missing.stderr
        again = headrace(controller, "pull", f"hf:{REPO}", "--as", "../x", check=False)
        assert (again.returncode, "no model name" in again.stderr) == (2, True)
    store = Store(home)
    store.verify(store.get(NAME))
    assert "hf_secret" not in controller.log_text()
