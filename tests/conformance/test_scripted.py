"""Errors of every reason, retries, broken streams and metadata, by every SDK."""

from __future__ import annotations

import hashlib

import pytest

from headrace.v1.errors_pb2 import ErrorReason
from tests.conformance.drivers import Driver
from tests.conformance.scripted import FAILURES, PIXELS, Scripted
from tests.conformance.telling import told

DELETE = "/headrace.v1.ModelService/DeleteModel"
GET = "/headrace.v1.ModelService/GetModel"
STREAM = "/headrace.v1.CompletionService/StreamCompletion"
SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ATTEMPTS = 4


@pytest.fixture
def sdk(driver: Driver, scripted: Scripted) -> Driver:
    """A driver at the scripted server."""
    return driver.at(scripted.target, timeout=30)


def test_every_reason_of_the_contract_is_tried() -> None:
    named = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()}  # noqa: SIM118 - no mapping
    assert set(FAILURES) == named - {"UNSPECIFIED"}


@pytest.mark.parametrize("reason", FAILURES)
def test_an_error_arrives_whole(sdk: Driver, reason: str) -> None:
    answer = sdk.ask("call", method=STREAM, request={"model": f"fail:{reason}", "prompt": "x"})
    assert answer["messages"] == []
    assert answer["error"] == told(FAILURES[reason])


@pytest.mark.parametrize("reason", ["RUNNER_CRASHED", "DRAINING"])
def test_an_error_arrives_after_what_came_before_it(
    sdk: Driver, scripted: Scripted, reason: str
) -> None:
    model = f"late:{reason}"
    before = scripted.attempts(model)
    answer = sdk.ask("call", method=STREAM, request={"model": model, "prompt": "x"})
    assert [next(iter(message)) for message in answer["messages"]] == ["started", "delta"]
    assert answer["error"] == told(FAILURES[reason])
    assert scripted.attempts(model) == before + 1


def test_an_error_of_a_unary_call(sdk: Driver) -> None:
    answer = sdk.ask("call", method=GET, request={"model": "fail:MODEL_NOT_FOUND"})
    assert answer["error"] == told(FAILURES["MODEL_NOT_FOUND"])


def test_a_helper_fails_as_its_stream_does(sdk: Driver) -> None:
    for reason in ("QUEUE_FULL", "RUNNER_CRASHED"):
        request = {"model": f"late:{reason}", "prompt": "x"}
        assert sdk.ask("complete", request=request)["error"] == told(FAILURES[reason])


@pytest.mark.parametrize("model", ["cut", "choiceless", "stray"])
def test_a_stream_that_is_not_whole_is_no_success(sdk: Driver, model: str) -> None:
    answer = sdk.ask("complete", request={"model": model, "prompt": "x"})
    assert answer["error"] is not None
    assert (answer["error"]["code"], answer["error"]["reason"]) == ("INTERNAL", "")


def test_an_image_in_pieces(sdk: Driver) -> None:
    answer = sdk.ask("draw", request={"model": "sound", "prompt": "x"})
    assert answer["error"] is None
    assert answer["images"] == [
        {
            "sha256": hashlib.sha256(PIXELS).hexdigest(),
            "bytes": len(PIXELS),
            "media_type": "image/png",
        }
    ]


def test_an_image_that_was_damaged_is_no_success(sdk: Driver) -> None:
    answer = sdk.ask("draw", request={"model": "damaged", "prompt": "x"})
    assert answer["error"] is not None
    assert (answer["error"]["code"], answer["error"]["reason"]) == ("DATA_LOSS", "")


def test_what_a_later_version_adds_is_passed_over(sdk: Driver) -> None:
    answer = sdk.ask("call", method=GET, request={"model": "newer"})
    assert answer["error"] is None
    assert answer["messages"][0]["model"]["name"] == "newer"
    whole = sdk.ask("complete", request={"model": "newer", "prompt": "x"})
    assert whole["error"] is None
    assert whole["text"] == "a"


def test_a_message_of_eight_megabytes(sdk: Driver) -> None:
    answer = sdk.ask("call", method=GET, request={"model": f"long:{8 << 20}"})
    assert answer["error"] is None
    assert len(answer["messages"][0]["model"]["license"]) == 8 << 20


@pytest.mark.parametrize(("kind", "failures"), [("flaky", 2), ("soon", 3)])
def test_a_unary_call_is_made_again(
    sdk: Driver, scripted: Scripted, kind: str, failures: int
) -> None:
    model = f"{kind}:{sdk.sdk.name}:{failures}"
    answer = sdk.ask("call", method=GET, request={"model": model})
    assert answer["error"] is None
    assert scripted.attempts(model) == failures + 1


def test_a_unary_call_is_not_made_for_ever(sdk: Driver, scripted: Scripted) -> None:
    model = f"flaky:{sdk.sdk.name}:100"
    answer = sdk.ask("call", method=GET, request={"model": model})
    assert answer["error"]["code"] == "UNAVAILABLE"
    assert scripted.attempts(model) == ATTEMPTS


def test_a_unary_call_is_not_made_again_past_its_deadline(sdk: Driver, scripted: Scripted) -> None:
    model = f"flaky:{sdk.sdk.name}-late:100"
    answer = sdk.ask("call", method=GET, request={"model": model}, timeout=0.05)
    assert answer["error"]["code"] in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
    assert scripted.attempts(model) < ATTEMPTS


def test_a_server_can_forbid_another_attempt(sdk: Driver, scripted: Scripted) -> None:
    model = f"final:{sdk.sdk.name}:1"
    answer = sdk.ask("call", method=GET, request={"model": model})
    assert answer["error"]["code"] == "UNAVAILABLE"
    assert scripted.attempts(model) == 1


def test_what_changes_the_store_is_not_made_again(sdk: Driver, scripted: Scripted) -> None:
    model = f"flaky:{sdk.sdk.name}-delete:1"
    answer = sdk.ask("call", method=DELETE, request={"model": model})
    assert answer["error"]["code"] == "UNAVAILABLE"
    assert scripted.attempts(model) == 1


def test_a_stream_is_not_made_again(sdk: Driver, scripted: Scripted) -> None:
    model = f"flaky:{sdk.sdk.name}-stream:1"
    answer = sdk.ask("call", method=STREAM, request={"model": model, "prompt": "x"})
    assert answer["error"]["code"] == "UNAVAILABLE"
    assert scripted.attempts(model) == 1


@pytest.mark.parametrize("method", [GET, STREAM])
def test_a_call_says_for_which_model_it_is(sdk: Driver, scripted: Scripted, method: str) -> None:
    sdk.ask("call", method=method, request={"model": "newer"})
    assert scripted.metadata("newer")["headrace-model"] == "newer"


@pytest.mark.parametrize("method", [GET, STREAM])
def test_a_call_is_part_of_the_callers_trace(sdk: Driver, scripted: Scripted, method: str) -> None:
    model = f"fail:{'INTERNAL' if method == GET else 'DRAINING'}"
    answer = sdk.ask("call", method=method, request={"model": model}, traceparent=SAMPLED)
    _, trace_id, _, flags = scripted.metadata(model)["traceparent"].split("-")
    assert trace_id == SAMPLED.split("-")[1] == answer["trace_id"]
    assert flags == "01"


def test_a_call_without_a_trace_gets_one_that_is_told(sdk: Driver, scripted: Scripted) -> None:
    seen = set()
    for _ in range(2):
        answer = sdk.ask("call", method=STREAM, request={"model": "newer", "prompt": "x"})
        assert scripted.metadata("newer")["traceparent"].split("-")[1] == answer["trace_id"]
        seen.add(answer["trace_id"])
    assert len(seen) == 2


def test_no_token_is_sent_where_none_is_given(sdk: Driver, scripted: Scripted) -> None:
    sdk.ask("call", method=GET, request={"model": "newer"})
    assert "authorization" not in scripted.metadata("newer")


def test_a_token_is_sent_to_this_machine_in_the_clear(driver: Driver, scripted: Scripted) -> None:
    driver.at(scripted.target, timeout=30, token="s3cret")
    driver.ask("call", method=GET, request={"model": "newer"})
    assert scripted.metadata("newer")["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize("method", [GET, STREAM])
def test_a_calls_own_headers_win(driver: Driver, scripted: Scripted, method: str) -> None:
    if driver.sdk.name == "python":
        pytest.skip("the calls of Python's SDK have no headers of their own")
    own = {"authorization": "Bearer calls", "traceparent": SAMPLED, "headrace-model": "mine"}
    driver.at(scripted.target, timeout=30, token="clients")
    answer = driver.ask("call", method=method, request={"model": "newer"}, headers=own)
    assert own.items() <= scripted.metadata("newer").items()
    assert answer["trace_id"] in ("", SAMPLED.split("-")[1])


@pytest.mark.parametrize("target", ["192.0.2.1:50151", "headrace.example:50151"])
def test_a_token_is_not_sent_to_another_machine_in_the_clear(driver: Driver, target: str) -> None:
    answer = driver.ask("connect", target=target, token="s3cret", timeout=5)
    assert answer["error"]["code"] == "INVALID_ARGUMENT"
    assert "https://" in answer["error"]["message"]
