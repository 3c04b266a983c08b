"""Models on disk: names, manifests, the catalogue, import and pull. Never imports MLX."""

from headrace_server.store.conversion import ImportOptions
from headrace_server.store.manifest import ImageFacts, Manifest, ModelFile
from headrace_server.store.names import ModelName, parse_name
from headrace_server.store.progress import OnProgress, Progress
from headrace_server.store.store import Store

__all__ = [
    "ImageFacts",
    "ImportOptions",
    "Manifest",
    "ModelFile",
    "ModelName",
    "OnProgress",
    "Progress",
    "Store",
    "parse_name",
]
