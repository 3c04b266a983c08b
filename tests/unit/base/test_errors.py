"""Errors and their way over the wire."""

import pickle
import subprocess
import sys

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status

from headrace import _exceptions, errors
from headrace.errors import FieldViolation, HeadraceError, from_rpc_error, to_status
from headrace.v1.errors_pb2 import ErrorReason

StatusCode = grpc.StatusCode

EXAMPLES: dict[str, tuple[HeadraceError, StatusCode]] = {
    "INVALID_REQUEST": (
        errors.InvalidRequest(violations=[FieldViolation("sampling.top_p", "at most 1")]),
        StatusCode.INVALID_ARGUMENT,
    ),
    "CONTEXT_LENGTH_EXCEEDED": (
        errors.ContextLengthExceeded(limit=2048, actual=2049),
        StatusCode.INVALID_ARGUMENT,
    ),
    "UNSUPPORTED_PARAMETER": (
        errors.UnsupportedParameter("not supported by this model", field="n"),
        StatusCode.INVALID_ARGUMENT,
    ),
    "UNSUPPORTED_CAPABILITY": (
        errors.UnsupportedCapability("no text", model="flux", capability="text"),
        StatusCode.FAILED_PRECONDITION,
    ),
    "UNSUPPORTED_MODEL": (
        errors.UnsupportedModel("no class for it", architecture="foo"),
        StatusCode.FAILED_PRECONDITION,
    ),
    "MODEL_NOT_FOUND": (
        errors.ModelNotFound("smol", nearest=["smollm2:135m"]),
        StatusCode.NOT_FOUND,
    ),
    "MODEL_CORRUPT": (errors.ModelCorrupt(file="model.safetensors"), StatusCode.DATA_LOSS),
    "MODEL_MISMATCH": (
        errors.ModelMismatch(wanted="sha256:a", serving="sha256:b"),
        StatusCode.FAILED_PRECONDITION,
    ),
    "DRAINING": (errors.Draining(1.5), StatusCode.UNAVAILABLE),
    "QUEUE_FULL": (
        errors.QueueFull(2.0, queue="model", limit=64),
        StatusCode.RESOURCE_EXHAUSTED,
    ),
    "DEADLINE_UNREACHABLE": (errors.DeadlineUnreachable(12.5), StatusCode.DEADLINE_EXCEEDED),
    "INSUFFICIENT_MEMORY": (
        errors.InsufficientMemory(needs=8, free=4),
        StatusCode.RESOURCE_EXHAUSTED,
    ),
    "INSUFFICIENT_DISK": (
        errors.InsufficientDisk(needs=8, free=4),
        StatusCode.RESOURCE_EXHAUSTED,
    ),
    "MODEL_TOO_LARGE": (errors.ModelTooLarge(needs=8, has=4), StatusCode.FAILED_PRECONDITION),
    "LOAD_FAILED": (
        errors.LoadFailed("no config.json", cause="LOAD_FAILED"),
        StatusCode.FAILED_PRECONDITION,
    ),
    "RUNNER_CRASHED": (errors.RunnerCrashed(cause="SIGNAL"), StatusCode.UNAVAILABLE),
    "CIRCUIT_OPEN": (errors.CircuitOpen(30, cause="NATIVE_ABORT"), StatusCode.UNAVAILABLE),
    "UNAUTHENTICATED": (errors.Unauthenticated("no token"), StatusCode.UNAUTHENTICATED),
    "PERMISSION_DENIED": (
        errors.PermissionDenied("not yours", scope="models.write"),
        StatusCode.PERMISSION_DENIED,
    ),
    "RATE_LIMITED": (
        errors.RateLimited("wait", limit="max_requests", retry_after=2.0),
        StatusCode.RESOURCE_EXHAUSTED,
    ),
    "NOT_IMPLEMENTED": (
        errors.NotImplementedYet("images come later", method="StreamImage"),
        StatusCode.UNIMPLEMENTED,
    ),
    "INTERNAL": (errors.InternalError("a" * 32), StatusCode.INTERNAL),
    "MODEL_IN_USE": (errors.ModelInUse("it is busy", model="m"), StatusCode.FAILED_PRECONDITION),
    "SOURCE_UNAVAILABLE": (
        errors.SourceUnavailable("PyPI did not answer", source="PyPI"),
        StatusCode.UNAVAILABLE,
    ),
}


def wire(error: HeadraceError) -> grpc.aio.AioRpcError:
    """Make the error a client sees."""
    status = to_status(error)
    trailing = grpc.aio.Metadata(*errors.trailing_metadata(error, status))
    return grpc.aio.AioRpcError(error.code, grpc.aio.Metadata(), trailing, status.message)


def test_every_reason_has_one_class_and_back() -> None:
    of_the_contract = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()[1:]}
    assert set(_exceptions.BY_REASON) == of_the_contract == set(EXAMPLES)
    for reason, (example, code) in EXAMPLES.items():
        assert example.reason == reason
        assert example.code is code
        assert _exceptions.BY_REASON[reason] is type(example)
    with_reason = [kind for kind in HeadraceError.__subclasses__() if kind.reason]
    assert len(with_reason) == len(_exceptions.BY_REASON)


@pytest.mark.parametrize("reason", EXAMPLES)
def test_an_error_comes_back_as_it_was(reason: str) -> None:
    error, code = EXAMPLES[reason]
    told = errors.from_status(to_status(error))
    back = from_rpc_error(wire(error))
    assert vars(told) == vars(back)
    assert type(back) is type(error)
    assert (back.code, back.reason, back.message) == (code, reason, error.message)
    assert back.metadata == error.metadata
    assert back.retry_after == error.retry_after
    assert back.violations == error.violations
    assert str(back) == error.message
    again = pickle.loads(pickle.dumps(back))
    assert type(again) is type(error)
    assert vars(again) | {"metadata": dict(again.metadata)} == vars(error) | {
        "metadata": dict(error.metadata),
        "code": code,
        "reason": reason,
    }


def test_details_where_they_apply() -> None:
    def kinds(error: HeadraceError) -> set[str]:
        return {detail.TypeName().rpartition(".")[2] for detail in to_status(error).details}

    assert kinds(EXAMPLES["QUEUE_FULL"][0]) == {"ErrorInfo", "RetryInfo"}
    assert kinds(EXAMPLES["INVALID_REQUEST"][0]) == {"ErrorInfo", "BadRequest"}
    assert kinds(EXAMPLES["INSUFFICIENT_MEMORY"][0]) == {"ErrorInfo", "RetryInfo", "QuotaFailure"}
    assert kinds(EXAMPLES["MODEL_NOT_FOUND"][0]) == {"ErrorInfo"}
    assert {ErrorInfo, RetryInfo, BadRequest, QuotaFailure}  # the pool knows all four


def test_crashed_mid_stream_is_aborted() -> None:
    error = errors.RunnerCrashed(cause="NATIVE_ABORT", tokens_sent=0)
    assert error.code is StatusCode.ABORTED
    assert error.metadata == {"cause": "NATIVE_ABORT", "tokens_sent": "0"}


@pytest.mark.parametrize("cause", ["OUT_OF_MEMORY", "STALLED", "SIGNAL"])
def test_load_failed_by_a_passing_cause_is_unavailable(cause: str) -> None:
    assert errors.LoadFailed("…", cause=cause).code is StatusCode.UNAVAILABLE


def test_what_a_proxy_breaks_off_is_unavailable_and_our_own_internal_is_not() -> None:
    words = "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))"
    broken = from_rpc_error(grpc.aio.AioRpcError(StatusCode.INTERNAL, details=words))
    assert type(broken) is errors.Unavailable
    assert broken.code is StatusCode.UNAVAILABLE
    other = from_rpc_error(grpc.aio.AioRpcError(StatusCode.INTERNAL, details="of a proxy"))
    assert type(other) is errors.InternalError
    own = errors.InternalError("RST_STREAM")
    assert type(from_rpc_error(wire(own))) is errors.InternalError


@pytest.mark.parametrize("text", ["x" * 10**6, "あ" * 10**6, "\udcff" * 5000])
def test_sizes_are_bounded(text: str) -> None:
    error = errors.InvalidRequest(
        text, violations=[FieldViolation(f"stop.strings[{i}]", text) for i in range(1000)]
    )
    status = to_status(error)
    assert status.ByteSize() <= 3072
    assert len(status.message.encode()) <= 1024
    back = from_rpc_error(wire(error))
    assert 0 < len(back.violations) < 1000
    assert back.violations[0].field == "stop.strings[0]"
    assert back.message.endswith("…")


def test_pushback_is_for_short_waits_only() -> None:
    def pushback(seconds: float) -> dict[str, str | bytes]:
        error = errors.Draining(seconds)
        return dict(errors.trailing_metadata(error, to_status(error)))

    assert pushback(0.5)["grpc-retry-pushback-ms"] == "500"
    assert pushback(30)["grpc-retry-pushback-ms"] == "-1"


def test_a_channel_repeats_nothing_that_does_not_say_when() -> None:
    def keys(error: errors.HeadraceError) -> dict[str, str | bytes]:
        return dict(errors.trailing_metadata(error, to_status(error)))

    assert keys(errors.RunnerCrashed(cause="SIGNAL"))["grpc-retry-pushback-ms"] == "-1"
    # Not among the codes that a channel retries.
    assert "grpc-retry-pushback-ms" not in keys(errors.ModelNotFound("x"))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (StatusCode.CANCELLED, errors.Cancelled),
        (StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (StatusCode.UNAVAILABLE, errors.Unavailable),
        (StatusCode.UNIMPLEMENTED, errors.NotImplementedYet),
        (StatusCode.INTERNAL, errors.InternalError),
        (StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (StatusCode.DATA_LOSS, errors.DataLoss),
        (StatusCode.RESOURCE_EXHAUSTED, errors.RpcFailed),
    ],
)
def test_without_details_the_code_decides(code: StatusCode, kind: type[HeadraceError]) -> None:
    error = from_rpc_error(grpc.aio.AioRpcError(code, details="from a proxy"))
    assert type(error) is kind
    assert (error.code, error.reason, error.message) == (code, "", "from a proxy")


def test_a_reason_of_a_later_version_is_kept() -> None:
    info = Any()
    info.Pack(ErrorInfo(reason="SOLAR_FLARE", domain="headrace.dev", metadata={"k": "v"}))
    status = Status(code=14, message="later", details=[info])
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    error = from_rpc_error(
        grpc.aio.AioRpcError(StatusCode.UNAVAILABLE, None, trailing, details="later")
    )
    assert type(error) is errors.Unavailable
    assert (error.reason, dict(error.metadata)) == ("SOLAR_FLARE", {"k": "v"})


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b""])
def test_damaged_details_are_no_error_of_their_own(data: bytes) -> None:
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", data))
    error = from_rpc_error(
        grpc.aio.AioRpcError(StatusCode.NOT_FOUND, None, trailing, details="gone")
    )
    assert (type(error), error.message) == (errors.RpcFailed, "gone")


def test_tracebacks_show_the_public_name() -> None:
    assert f"{errors.QueueFull.__module__}.{errors.QueueFull.__qualname__}" == (
        "headrace.errors.QueueFull"
    )


def test_importing_errors_is_light() -> None:
    heavy = ("mlx", "click", "rich", "opentelemetry.sdk", "protovalidate", "numpy")
    code = f"import sys, headrace.errors; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
