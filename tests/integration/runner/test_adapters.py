"""A runner that was started by hand with a directory of adapters."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from headrace.errors import ModelCorrupt, UnsupportedParameter
from headrace.v1.tokenize_pb2 import TokenizeRequest
from headrace_runner.models.insides import load_lazily
from tests.adapters import by_hand, of_directory, with_adapter, write_mlx
from tests.integration.runner.api import ENDLESS, GREEDY, MODEL, connected, prompt
from tests.integration.runner.conftest import ServeTiny

TOKENS = 12


async def test_requests_name_their_directories(
    serve_tiny: ServeTiny, tiny_dir: Path, tmp_path: Path
) -> None:
    for seed, name in enumerate(("pirate", "sailor", "third")):
        write_mlx(tmp_path / name, of_directory(tiny_dir, seed=seed))
    (tmp_path / "third" / "adapter_config.json").unlink()
    with serve_tiny("--adapters", str(tmp_path), "--max-adapters", "1") as child:
        async with connected(child.address) as api:
            asked = {
                name: prompt("fox", TOKENS, adapter=name, sampling=GREEDY, stop=ENDLESS)
                for name in ("", "pirate", "sailor")
            }
            told = await api.tokenize.Tokenize(TokenizeRequest(model=MODEL, text="fox"))
            found = await asyncio.gather(*map(api.complete, asked.values()))
            for answer, name in zip(found, asked, strict=True):
                assert answer.started.adapter == name
                model, _ = load_lazily(tiny_dir)
                if name:
                    model = with_adapter(model, tmp_path / name)
                assert answer.token_ids == by_hand(model, [*told.token_ids], TOKENS)
            assert (await api.describe()).memory.adapters_bytes > 0
            with pytest.raises(UnsupportedParameter, match=r"no adapter 'x'; there is: pirate, sa"):
                await api.complete(prompt("fox", 1, adapter="x"))
            with pytest.raises(ModelCorrupt, match=r"lora_parameters\.scale"):
                await api.complete(prompt("fox", 1, adapter="third"))
