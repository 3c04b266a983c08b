"""The command line, called in this process."""

from collections.abc import Callable, Iterator

from headrace.errors import ModelNotFound
from headrace.v1 import model_pb2
from tests.unit.sdk import fake as say
from tests.unit.sdk.fake import Fake

Run = Callable[..., tuple[int, str, str]]
"""Takes its arguments, and `stdin`; gives its exit code and what it printed on both outputs."""


def let_arrive(fake: Fake, name: str) -> None:
    """Has a model be missing until it is pulled."""

    class Arrives(list[object]):
        def __iter__(self) -> Iterator[object]:
            fake.failure = None
            return iter([model_pb2.StreamPullModelResponse(completed=say.model(name))])

    fake.failure = ModelNotFound(name)
    fake.transfer = Arrives()
