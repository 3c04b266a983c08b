"""Clients of contracts as they once were, made from frozen descriptors and from nothing of today's.

Each has a descriptor pool of its own, so that it knows the messages, fields, values and services of
its day alone, as code that was generated then does.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

FOLDER = Path(__file__).parent
PACKAGE = "headrace.v1"
_TIMEOUT = 120.0  # seconds


class Contract:
    """What a client of one day knew."""

    def __init__(self, path: Path, without: Collection[str] = ()) -> None:
        """`without`: fields and values of enums that it is not to know, as
        "StreamCompletionResponse.started"."""
        self._pool = DescriptorPool()
        self._services: list[str] = []
        left = set(without)
        for file in FileDescriptorSet.FromString(path.read_bytes()).file:
            if file.package == PACKAGE:
                left -= _cut(file, left)
                self._services += [service.name for service in file.service]
            self._pool.Add(file)
        assert not left, f"the contract never had {left}"

    def message(self, name: str, **fields: Any) -> Any:
        """A message of the package."""
        descriptor = self._pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
        return GetMessageClass(descriptor)(**fields)

    def value(self, enum: str, name: str) -> int | None:
        """The number of a value; None: there was none of this name."""
        found = self._pool.FindEnumTypeByName(f"{PACKAGE}.{enum}").values_by_name.get(name)
        return None if found is None else found.number

    def method(self, path: str) -> MethodDescriptor:
        """As in "CompletionService/StreamCompletion". Raises KeyError."""
        service, _, name = path.partition("/")
        return self._service(service).methods_by_name[name]

    @property
    def methods(self) -> list[str]:
        """All of them, as `method` takes them."""
        found = [self._service(name) for name in self._services]
        return [f"{each.name}/{m.name}" for each in found for m in each.methods]

    def _service(self, name: str) -> ServiceDescriptor:
        found: ServiceDescriptor = self._pool.FindServiceByName(f"{PACKAGE}.{name}")
        return found


def _cut(file: FileDescriptorProto, names: Collection[str]) -> set[str]:
    """Take fields and values out of a file; gives those that were there."""
    found = set()
    owners: list[tuple[Any, Any]] = [(message, message.field) for message in file.message_type]
    owners += [(enum, enum.value) for enum in file.enum_type]
    for owner, members in owners:
        for member in [m for m in members if f"{owner.name}.{m.name}" in names]:
            found.add(f"{owner.name}.{member.name}")
            members.remove(member)
            _check_oneof(owner, member)
    return found


def _check_oneof(owner: Any, member: Any) -> None:
    """A oneof without a field would be none: the last one of it is not to be taken away."""
    if isinstance(owner, DescriptorProto) and member.HasField("oneof_index"):
        assert any(
            f.HasField("oneof_index") and f.oneof_index == member.oneof_index for f in owner.field
        )


class OldError(Exception):
    """A call has failed, as a client that knows gRPC and nothing of Headrace's SDK sees it."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__(error.details())
        self.code = error.code()
        self.info = error_details_pb2.ErrorInfo()
        self.violations: list[str] = []
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                self._take(status_pb2.Status.FromString(value))

    def _take(self, status: Any) -> None:
        for detail in status.details:
            detail.Unpack(self.info)
            request = error_details_pb2.BadRequest()
            if detail.Unpack(request):
                self.violations += [violation.field for violation in request.field_violations]


class OldClient:
    """Makes the calls of a contract."""

    def __init__(self, contract: Contract, channel: grpc.aio.Channel, token: str) -> None:
        self.contract = contract
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def call(self, path: str, **fields: Any) -> Any:
        """The answer of a unary method. Raises OldError."""
        (answer,) = [message async for message in self.stream(path, **fields)]
        return answer

    async def stream(self, path: str, **fields: Any) -> AsyncGenerator[Any, None]:
        """All that a method answers. Raises OldError."""
        method = self.contract.method(path)
        request: Message = GetMessageClass(method.input_type)(**fields)
        make: Any = (
            self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        )
        stub = make(
            f"/{method.containing_service.full_name}/{method.name}",
            type(request).SerializeToString,
            GetMessageClass(method.output_type).FromString,
        )
        call = stub(request, timeout=_TIMEOUT, metadata=self._metadata)
        try:
            if not method.server_streaming:
                yield await call
                return
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise OldError(error) from None
        finally:
            call.cancel()

    async def send(self, path: str, data: bytes) -> bytes:
        """The first message that any method answers to such bytes. Raises OldError."""
        stub: Any = self._channel.unary_stream(path)
        call = stub(data, timeout=_TIMEOUT, metadata=self._metadata)
        try:
            return bytes(await anext(aiter(call)))
        except grpc.aio.AioRpcError as error:
            raise OldError(error) from None
        finally:
            call.cancel()
