"""Where models come from beside the catalogue: the Hugging Face hub, an address, Ollama's store."""

from headrace_server.store.sources.pulling import Pull, Shelf
from headrace_server.store.sources.reference import NO_OPTIONS, PullOptions, parse_source

__all__ = ["NO_OPTIONS", "Pull", "PullOptions", "Shelf", "parse_source"]
