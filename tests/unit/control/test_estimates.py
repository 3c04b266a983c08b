"""Memory estimates, in round numbers."""

from dataclasses import dataclass

import pytest

from headrace.host.dtype import Dtype
from headrace_server.scheduling import estimates
from headrace_server.scheduling.estimates import MIB


@dataclass(frozen=True)
class Working:
    working_bytes: int = 300 * MIB


@dataclass(frozen=True)
class Model:
    tensor_bytes: int = 100 * MIB
    parameters: int = 135_000_000
    context_length: int = 2048
    layers: int = 30
    kv_heads: int = 3
    head_dim: int = 64
    image: Working | None = None
    embedding: Working | None = None


def test_weights_as_they_will_be_in_memory() -> None:
    assert estimates.weight_bytes(Model(), "stored") == 100 * MIB
    assert estimates.weight_bytes(Model(), "float32") == 540_000_000
    assert estimates.weight_bytes(Model(), "int8") == 100 * MIB


def test_an_unknown_size_counts_as_8_gib() -> None:
    assert estimates.weight_bytes(Model(tensor_bytes=0, parameters=0), "float32") == 8 << 30


def test_kv_cache_has_room_for_one_full_context_or_for_a_batch_of_short_requests() -> None:
    per_token = 2 * 30 * 3 * 64 * 4
    assert estimates.kv_bytes(Model(), "float32", 1, None) == per_token * 2048
    assert estimates.kv_bytes(Model(), "float32", 32, None) == per_token * 32 * 512
    assert estimates.kv_bytes(Model(), "float32", 2, 256) == per_token * 2 * 256
    assert estimates.kv_bytes(Model(), "int8", 1, None) == per_token * 2048
    assert estimates.kv_bytes(Model(), "stored", 1, None) == per_token * 2048 // 2


def test_the_runner_s_report_replaces_the_weights_alone() -> None:
    model = Model()
    before = estimates.before_load(model, dtype="stored", concurrency=8, context=None)
    same = estimates.after_load(
        model.tensor_bytes, model, dtype="stored", concurrency=8, context=None
    )
    more = estimates.after_load(
        2 * model.tensor_bytes, model, dtype="stored", concurrency=8, context=None
    )
    assert before == same
    assert more > before + model.tensor_bytes


@pytest.mark.parametrize("other", [Model(image=Working()), Model(embedding=Working())])
def test_another_kind_has_no_kv_cache_and_takes_what_its_manifest_says(other: Model) -> None:
    cases: tuple[tuple[Dtype, int], ...] = (
        ("stored", 100 * MIB),
        ("float32", 540_000_000),
    )
    for dtype, weights in cases:
        needs = estimates.before_load(other, dtype=dtype, concurrency=32, context=None)
        assert needs == weights + 300 * MIB + estimates.margin(weights)
    measured = estimates.after_load(200 * MIB, other, dtype="stored", concurrency=32, context=None)
    assert measured == 500 * MIB + estimates.margin(200 * MIB)


def test_the_table_says_what_a_load_with_those_options_would_set_aside() -> None:
    model = Model(context_length=4096)
    table = estimates.table(model, dtype="stored")
    assert [(e.context, e.concurrency) for e in table] == [
        *((2048, 1), (2048, 8), (2048, 32)),
        *((4096, 1), (4096, 8), (4096, 32)),
    ]
    for e in table:
        assert e.needs == estimates.before_load(
            model, dtype="stored", concurrency=e.concurrency, context=e.context
        )
    short = estimates.table(Model(context_length=100), dtype="stored")
    assert {e.context for e in short} == {100}
    unknown = estimates.table(Model(context_length=0), dtype="stored")
    assert {e.context for e in unknown} == {2048, 8192}
    assert estimates.table(Model(image=Working()), dtype="stored") == ()
