"""What a spare runner is told."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from headrace.host.orders import Orders, OrdersError, encode, receive


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        os.close(fd)


def test_orders_arrive_as_they_were_given_and_nothing_more_is_read(pipe: tuple[int, int]) -> None:
    orders = Orders(["--model", "/a b/\udcff", "--name", "é"], {"TRACEPARENT": "00-ab"})
    os.write(pipe[1], encode(orders) + b"more")
    assert receive(pipe[0]) == orders
    assert os.read(pipe[0], 100) == b"more"


@pytest.mark.parametrize("sent", [b"", b'{"arguments": []'])
def test_an_end_before_they_are_whole_is_the_end(sent: bytes) -> None:
    reading, writing = os.pipe()
    os.write(writing, sent)
    os.close(writing)
    assert receive(reading) is None
    os.close(reading)


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"[]",
        b'{"arguments": []}',
        b'{"arguments": "--model", "environment": {}}',
        b'{"arguments": [1], "environment": {}}',
        b'{"arguments": [], "environment": {"A": 1}}',
    ],
)
def test_what_is_no_order_is_refused(pipe: tuple[int, int], line: bytes) -> None:
    os.write(pipe[1], line + b"\n")
    with pytest.raises(OrdersError):
        receive(pipe[0])
