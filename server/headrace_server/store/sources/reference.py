"""What a pull names, if it is no model of the catalogue: a hub's repository, an address, or a model
of Ollama's store. Pure: text in, values out; nothing is looked up here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath
from typing import NoReturn, TypeAlias
from urllib.parse import unquote, urlsplit

from headrace._target import is_loopback
from headrace.errors import FieldViolation, InvalidRequest
from headrace_server.store.names import DEFAULT_TAG, ModelName, parse_name

MAIN = "main"
_HUB_HOSTS = {"huggingface.co", "www.huggingface.co", "hf.co"}
_REPO = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./+-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9A-Fa-f]{64}")
_OLLAMA_HOST = "registry.ollama.ai"
_OLLAMA_PART = re.compile(r"[A-Za-z0-9][\w.-]{0,79}", re.ASCII)
_REFS = 3
"""Segments of a revision such as refs/pr/1."""
_SHORT = 12
"""Digits of a commit that are enough for a tag."""


@dataclass(frozen=True)
class PullOptions:
    """What a pull says beside the model; empty: it does not say."""

    name: str = ""
    revision: str = ""
    files: tuple[str, ...] = ()
    sha256: str = ""
    allow_http: bool = False


NO_OPTIONS = PullOptions()


@dataclass(frozen=True)
class HubSource:
    """A repository of the Hugging Face hub."""

    repo: str
    revision: str
    files: tuple[str, ...]
    """Patterns of the weights that are wanted; empty: those that the repository suggests."""
    sha256: str
    """In lower-case hex; empty: whatever the hub says."""

    def __str__(self) -> str:
        return f"hf:{self.repo}"

    @property
    def key(self) -> str:
        """Names its downloads and its lock."""
        return f"hf-{sha256(str(self).encode()).hexdigest()}"

    def local_name(self, gguf: str | None) -> ModelName:
        """Its name in the store; `gguf`: the path of the file that was chosen, if it is one."""
        stem = PurePosixPath(gguf).stem if gguf else self.repo.rpartition("/")[2]
        revision = self.revision[:_SHORT] if _COMMIT.fullmatch(self.revision) else self.revision
        return _name(stem, DEFAULT_TAG if revision == MAIN else revision)


@dataclass(frozen=True)
class UrlSource:
    """A GGUF file behind an address."""

    url: str
    sha256: str
    """In lower-case hex."""
    allow_http: bool

    def __str__(self) -> str:
        """Without its query, which may be a signature that opens the door to others."""
        return self.url.partition("?")[0]

    @property
    def key(self) -> str:
        """Names its downloads and its lock: two addresses of one file share them."""
        return f"url-{self.sha256}"

    def local_name(self) -> ModelName:
        """Its name in the store."""
        return _name(PurePosixPath(unquote(urlsplit(self.url).path)).stem, DEFAULT_TAG)


@dataclass(frozen=True)
class OllamaSource:
    """A model in Ollama's store on this machine."""

    host: str
    namespace: str
    model: str
    tag: str

    def __str__(self) -> str:
        return "ollama:" + "/".join(self._shown_parts()) + f":{self.tag}"

    @property
    def key(self) -> str:
        """Names its lock."""
        return f"ollama-{sha256(str(self).encode()).hexdigest()}"

    @property
    def manifest(self) -> PurePosixPath:
        """Path of its manifest below `manifests/`. Every part is checked: none leaves the store."""
        return PurePosixPath(self.host, self.namespace, self.model, self.tag)

    def local_name(self) -> ModelName:
        """Its name in the store: Ollama's, without the host."""
        shown = self._shown_parts()[-2:]
        return parse_name("/".join(map(_part, shown)) + f":{_part(self.tag)}", "name")

    def _shown_parts(self) -> list[str]:
        parts = [self.host, self.namespace, self.model]
        if self.host == _OLLAMA_HOST:
            return parts[2:] if self.namespace == "library" else parts[1:]
        return parts


Source: TypeAlias = HubSource | UrlSource | OllamaSource


def parse_source(model: str, options: PullOptions) -> Source | None:
    """What `model` names; None for a name of the catalogue.

    Raises InvalidRequest for what is malformed, and for options that do not apply.
    """
    if model.startswith("hf:"):
        return _hub(model.removeprefix("hf:").removeprefix("//"), options)
    if model.startswith("ollama:"):
        _refuse(options, "a model of Ollama's store", "revision", "files", "sha256", "allow_http")
        return _ollama(model.removeprefix("ollama:"))
    if "://" in model:
        return _address(model, options)
    wanted = ("name", "revision", "files", "sha256", "allow_http")
    _refuse(options, "a model of the catalogue", *wanted)
    return None


def _hub(text: str, options: PullOptions) -> HubSource:
    _refuse(options, "a hub's repository", "allow_http")
    repo, at, behind = text.partition("@")
    if _REPO.fullmatch(repo) is None or ".." in repo or "--" in repo:
        _blame("model", f"{repo!r} is no repository of the hub; write hf:ORG/REPO")
    if options.revision and at and options.revision != behind:
        _blame("revision", f"the model says {behind!r} already; give one of them")
    revision = options.revision or (behind if at else MAIN)
    segments = revision.split("/")
    if _REVISION.fullmatch(revision) is None or any(part in ("", ".", "..") for part in segments):
        field = "revision" if options.revision else "model"
        _blame(field, f"{revision!r} is no branch, tag or commit of a repository")
    return HubSource(repo, revision, options.files, options.sha256.lower())


def _address(text: str, options: PullOptions) -> Source:
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        _ = parts.port  # Looked at only now, and raises.
    except ValueError as error:
        _blame("model", f"it is no address: {error}")
    if parts.scheme not in ("https", "http") or not host:
        _blame("model", "an address begins with https:// and has a host")
    if parts.username is not None or parts.password is not None:
        _blame("model", "an address with a password in it would be shown; put that into ~/.netrc")
    if any(ord(c) <= ord(" ") or ord(c) == 0x7F for c in text):
        _blame("model", "an address has no white space or control characters; write them as %20")
    if parts.scheme == "https" and host in _HUB_HOSTS:
        return _hub_page([unquote(part) for part in parts.path.split("/") if part], options)
    _refuse(options, "an address", "revision", "files")
    if parts.scheme == "http" and not (options.allow_http or is_loopback(host)):
        what = (
            "http:// shows and trusts everybody on the way; use https://, or allow it (allow_http)"
        )
        _blame("model", what)
    if _DIGEST.fullmatch(options.sha256) is None:
        what = (
            "a file from an address needs its SHA-256, 64 hex digits: who offers the file mostly"
            " publishes it; `sha256sum FILE` tells that of a file that you trust"
        )
        _blame("sha256", what)
    return UrlSource(text.partition("#")[0], options.sha256.lower(), options.allow_http)


def _hub_page(parts: list[str], options: PullOptions) -> HubSource:
    """The repository that a page of the hub is about: of itself, of a revision, or of a file."""
    views = [i for i, part in enumerate(parts) if i in (1, 2) and part in _VIEWS]
    if not views:
        return _hub("/".join(parts), options)
    repo, view, rest = parts[: views[0]], parts[views[0]], parts[views[0] + 1 :]
    long = _REFS if rest[:1] == ["refs"] else 1
    revision, file = "/".join(rest[:long]), "/".join(rest[long:])
    if options.files and file:
        _blame("files", f"the address names {file!r} already; give one of them")
    if view == "tree" and file:
        _blame("model", "a folder of a repository is no model; name the repository")
    found = _hub(f"{'/'.join(repo)}@{revision}", options)
    # The brackets keep the name of a file from being taken for a pattern.
    literal = re.sub(r"[*?[]", lambda special: f"[{special[0]}]", file)
    return HubSource(found.repo, found.revision, (literal,) if file else found.files, found.sha256)


_VIEWS = ("tree", "blob", "resolve")


def _ollama(text: str) -> OllamaSource:
    path, _, tag = text.partition(":")
    parts = path.split("/")
    known = [_OLLAMA_HOST, "library"]
    whole = [*known[: max(0, 3 - len(parts))], *parts]
    if len(whole) != len(known) + 1 or not all(map(_ollama_part, [*whole, tag or DEFAULT_TAG])):
        what = f"{text!r} is no model of Ollama; write ollama:MODEL or ollama:MODEL:TAG"
        _blame("model", what)
    host, namespace, model = whole
    return OllamaSource(host, namespace, model, tag or DEFAULT_TAG)


def _ollama_part(part: str) -> bool:
    return _OLLAMA_PART.fullmatch(part) is not None


def _name(stem: str, tag: str) -> ModelName:
    return parse_name(f"{_part(stem)}:{_part(tag)}", "name")


def _part(text: str) -> str:
    """`text` as a part of a model's name."""
    part = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).lstrip("._-").removesuffix(".json")
    if not part:
        _blame("name", f"no name can be made of {text!r}; give one")
    return part


def _refuse(options: PullOptions, what: str, *fields: str) -> None:
    wrong = [field for field in fields if getattr(options, field)]
    if wrong:
        raise InvalidRequest(
            violations=[FieldViolation(field, f"{what} does not take it") for field in wrong]
        )


def _blame(field: str, what: str) -> NoReturn:
    raise InvalidRequest(violations=[FieldViolation(field, what)])


def command_for(source: str, name: str) -> str | None:
    """What pulls a model again, by the source in its manifest; None for one of another origin."""
    origin, _, pinned = source.rpartition("@")
    scheme, _, rest = origin.partition(":")
    if scheme == "hf":
        parts = rest.split("/")
        # Old repositories stand under no organisation.
        of_repo = 1 if len(parts) == 2 and rest.endswith(".gguf") else 2
        repo, files = "/".join(parts[:of_repo]), "/".join(parts[of_repo:])
        choice = "".join(f' --file "{file}"' for file in files.split(",") if file)
        return f"headrace pull hf:{repo}@{pinned}{choice} --as {name}"
    if scheme == "ollama":
        return f"headrace pull {origin} --as {name}"
    if scheme in ("http", "https"):
        return f"headrace pull {origin} --sha256 {pinned.removeprefix('sha256:')} --as {name}"
    return None
