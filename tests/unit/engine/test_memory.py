"""What is planned, what is reserved, and how an allocation that failed is known."""

from __future__ import annotations

import sys
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_runner.engine.text.memory import Reservations, plan
from headrace_runner.models.device import is_allocation_failure

GIB = 1 << 30


@given(st.integers(0, 1 << 45), st.integers(0, 1 << 45))
def test_a_plan_leaves_room_for_the_computation(available: int, weights: int) -> None:
    planned = plan(available, weights)
    assert planned.kv_bytes >= 0
    assert planned.prefix_bytes >= 0
    assert planned.kv_bytes + planned.prefix_bytes <= 0.7 * available + 1


def test_more_is_remembered_of_a_larger_model_within_bounds() -> None:
    small, large = (plan(100 * GIB, weights).prefix_bytes for weights in (GIB // 8, 8 * GIB))
    assert small == GIB // 4
    assert large == 4 * GIB
    assert plan(100 * GIB, 1000 * GIB).prefix_bytes == 10 * GIB
    assert plan(GIB, 8 * GIB).prefix_bytes <= GIB // 10


def test_what_is_given_is_taken_as_it_is() -> None:
    planned = plan(GIB, GIB, kv_bytes=5 * GIB, prefix_bytes=0)
    assert (planned.kv_bytes, planned.prefix_bytes) == (5 * GIB, 0)
    assert plan(GIB, GIB, kv_bytes=7).prefix_bytes == plan(GIB, GIB).prefix_bytes
    assert plan(GIB, GIB, prefix_bytes=7).kv_bytes == plan(GIB, GIB).kv_bytes


@given(st.integers(0, 100), st.data())
def test_reservations_stay_within_the_limit_but_for_one_who_is_alone(
    limit: int, data: st.DataObject
) -> None:
    reservations, owners = Reservations(limit), count()
    held: dict[int, int] = {}
    for _ in range(data.draw(st.integers(0, 30))):
        freeing = data.draw(st.booleans())
        if held and freeing:
            owner = data.draw(st.sampled_from([*held, -1]))
            reservations.free(owner)
            held.pop(owner, None)
        else:
            owner, needed = next(owners), data.draw(st.integers(0, 120))
            fits = sum(held.values()) + needed <= limit
            assert reservations.take(owner, needed) is (fits or not held)
            if fits or not held:
                held[owner] = needed
        assert reservations.reserved == sum(held.values())
        assert reservations.reserved <= limit or len(held) == 1 or not any(list(held.values())[1:])


def test_nothing_is_reserved_by_one_who_is_turned_away() -> None:
    reservations = Reservations(10)
    assert reservations.take(1, 8)
    assert not reservations.take(2, 3)
    reservations.free(2)
    assert reservations.reserved == 8
    reservations.free(1)
    reservations.free(1)
    assert reservations.reserved == 0
    assert reservations.take(2, 300)


@pytest.mark.parametrize(
    "message",
    [
        # As MLX's allocators say it.
        "[malloc] Unable to allocate 34359738368 bytes.",
        "std::bad_alloc",
        "[metal::malloc] Attempting to allocate 9663676416 bytes which is greater than the maximum "
        "allowed buffer size of 8589934592 bytes.",
        "[metal::malloc] Resource limit (499000) exceeded.",
        "[METAL] Command buffer execution failed: Insufficient Memory "
        "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory).",
        "cudaMallocAsync(&data, size, stream) failed: out of memory",
        "cudaMallocManaged(&data, size) failed: out of memory",
    ],
    ids=range(7),
)
def test_mlx_says_that_memory_has_run_out(message: str) -> None:
    assert is_allocation_failure(RuntimeError(message))


def test_python_says_that_memory_has_run_out() -> None:
    with pytest.raises(MemoryError) as caught:
        bytearray(sys.maxsize)
    assert is_allocation_failure(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[matmul] Last dimension of first input with shape (1,2) must match"),
        RuntimeError("[METAL] Command buffer execution failed: Caused GPU Timeout Error."),
        RuntimeError("cudaGraphLaunch(graph, stream) failed: an illegal memory access"),
        ValueError("out of memory"),
        KeyError("[malloc] Unable to allocate 8 bytes."),
    ],
    ids=str,
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_allocation_failure(error)
