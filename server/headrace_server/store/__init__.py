"""Models on disk: names, manifests, the catalogue, import, pull, upkeep. Never imports MLX."""

from headrace_server.store.conversion import ImportOptions
from headrace_server.store.damage import Damage, DamageKind, Reading, Verified
from headrace_server.store.garbage import Garbage, GarbageItem, GarbageKind
from headrace_server.store.manifest import AdapterFacts, ImageFacts, Manifest, ModelFile
from headrace_server.store.names import ModelName, parse_name
from headrace_server.store.progress import OnProgress, Progress
from headrace_server.store.sources import PullOptions
from headrace_server.store.store import Store

__all__ = [
    "AdapterFacts",
    "Damage",
    "DamageKind",
    "Garbage",
    "GarbageItem",
    "GarbageKind",
    "ImageFacts",
    "ImportOptions",
    "Manifest",
    "ModelFile",
    "ModelName",
    "OnProgress",
    "Progress",
    "PullOptions",
    "Reading",
    "Store",
    "Verified",
    "parse_name",
]
