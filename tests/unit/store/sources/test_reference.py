"""What a pull may name, and what the store calls it."""

from __future__ import annotations

import pytest

from headrace._target import is_loopback
from headrace.errors import InvalidRequest
from headrace_server.store.sources.reference import (
    HubSource,
    OllamaSource,
    PullOptions,
    UrlSource,
    command_for,
    parse_source,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA256 = "AB" * 32
HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    ("model", "options", "repo", "revision", "files"),
    [
        ("hf:acme/Tiny", {}, "acme/Tiny", "main", ()),
        ("hf://acme/Tiny", {}, "acme/Tiny", "main", ()),
        ("hf:gpt2", {}, "gpt2", "main", ()),
        ("hf:acme/Tiny@v1.0", {}, "acme/Tiny", "v1.0", ()),
        ("hf:acme/Tiny@refs/pr/1", {"files": ("*.gguf",)}, "acme/Tiny", "refs/pr/1", ("*.gguf",)),
        ("hf:acme/Tiny", {"revision": COMMIT}, "acme/Tiny", COMMIT, ()),
        (f"{HUB}/acme/Tiny", {}, "acme/Tiny", "main", ()),
        ("https://hf.co/acme/Tiny/", {}, "acme/Tiny", "main", ()),
        (f"{HUB}/acme/Tiny/tree/v2", {}, "acme/Tiny", "v2", ()),
        (f"{HUB}/acme/Tiny/tree/refs%2Fpr%2F1", {}, "acme/Tiny", "refs/pr/1", ()),
        (f"{HUB}/acme/T/resolve/refs/pr/1/a/b.gguf", {}, "acme/T", "refs/pr/1", ("a/b.gguf",)),
        (f"{HUB}/acme/T/blob/main/a[1].gguf?x=y", {}, "acme/T", "main", ("a[[]1].gguf",)),
        (f"{HUB}/gpt2/blob/main/m.gguf", {"sha256": SHA256}, "gpt2", "main", ("m.gguf",)),
    ],
)
def test_repositories(
    model: str,
    options: dict[str, object],
    repo: str,
    revision: str,
    files: tuple[str, ...],
) -> None:
    source = parse_source(model, PullOptions(**options))  # type: ignore[arg-type]
    sha256 = SHA256.lower() if "sha256" in options else ""
    assert source == HubSource(repo, revision, files, sha256)


@pytest.mark.parametrize(
    ("source", "gguf", "name"),
    [
        (
            HubSource("mlx-community/Llama-3.2-1B-Instruct-4bit", "main", (), ""),
            None,
            "llama-3.2-1b-instruct-4bit:latest",
        ),
        (HubSource("a/B", "v1.0", (), ""), None, "b:v1.0"),
        (HubSource("a/B", COMMIT, (), ""), None, "b:0123456789ab"),
        (HubSource("a/B", "refs/pr/1", (), ""), None, "b:refs-pr-1"),
        (HubSource("a/B-GGUF", "main", (), ""), "q/B-Q4_0.gguf", "b-q4_0:latest"),
        (HubSource("a/b.json", "main", (), ""), None, "b:latest"),
    ],
)
def test_names_of_repositories(source: HubSource, gguf: str | None, name: str) -> None:
    assert str(source.local_name(gguf)) == name


def test_addresses() -> None:
    options = PullOptions(sha256=SHA256, name="x")
    source = parse_source("https://host/a/My%20Model.gguf?sig=s3cret#f", options)
    assert isinstance(source, UrlSource)
    assert source.url == "https://host/a/My%20Model.gguf?sig=s3cret"
    assert str(source) == "https://host/a/My%20Model.gguf"
    assert source.key == f"url-{SHA256.lower()}"
    assert str(source.local_name()) == "my-model:latest"
    for model in ("http://127.0.0.1:1/m.gguf", "http://localhost/m.gguf", "http://[::1]/m.gguf"):
        assert isinstance(parse_source(model, options), UrlSource)
    allowed = PullOptions(sha256=SHA256, allow_http=True)
    assert isinstance(parse_source("http://host/m.gguf", allowed), UrlSource)


def test_models_of_ollama() -> None:
    for model, parts, shown, name in (
        ("tiny", ("registry.ollama.ai", "library", "tiny", "latest"), "tiny:latest", "tiny:latest"),
        ("t:1b", ("registry.ollama.ai", "library", "t", "1b"), "t:1b", "t:1b"),
        ("me/T:Q4", ("registry.ollama.ai", "me", "T", "Q4"), "me/T:Q4", "me/t:q4"),
        ("hf.co/me/T:Q4", ("hf.co", "me", "T", "Q4"), "hf.co/me/T:Q4", "me/t:q4"),
    ):
        source = parse_source(f"ollama:{model}", PullOptions())
        assert isinstance(source, OllamaSource)
        assert source == OllamaSource(*parts)
        assert source.manifest.parts == parts
        assert str(source) == f"ollama:{shown}"
        assert str(source.local_name()).removeprefix("library/") == name


def test_a_name_of_the_catalogue_is_no_source() -> None:
    assert parse_source("smollm2:135m", PullOptions()) is None
    assert parse_source("hf", PullOptions()) is None


@pytest.mark.parametrize(
    ("model", "options", "field"),
    [
        ("hf:", {}, "model"),
        ("hf:a/b/c", {}, "model"),
        ("hf:../b", {}, "model"),
        ("hf:a/..b", {}, "model"),
        ("hf:a/b--c", {}, "model"),
        ("hf:a/b@", {}, "model"),
        ("hf:a/b@../../c", {}, "model"),
        ("hf:a/b@x", {"revision": "y"}, "revision"),
        ("hf:a/b", {"revision": "/x"}, "revision"),
        ("hf:a/b", {"allow_http": True}, "allow_http"),
        (f"{HUB}/a/b/tree/main/folder", {}, "model"),
        (f"{HUB}/a/b/blob/main/m.gguf", {"files": ("x",)}, "files"),
        ("https://host/m.gguf", {}, "sha256"),
        ("https://host/m.gguf", {"sha256": "ab"}, "sha256"),
        ("https://host/m.gguf", {"sha256": SHA256, "revision": "v"}, "revision"),
        ("https://host/m.gguf", {"sha256": SHA256, "files": ("v",)}, "files"),
        ("https://me:pw@host/m.gguf", {"sha256": SHA256}, "model"),
        ("https:///m.gguf", {"sha256": SHA256}, "model"),
        ("https://host:x/m.gguf", {"sha256": SHA256}, "model"),
        ("https://[host/m.gguf", {"sha256": SHA256}, "model"),
        ("https://host/a b.gguf", {"sha256": SHA256}, "model"),
        ("http://host/m.gguf", {"sha256": SHA256}, "model"),
        ("http://127.0.0.1.host/m.gguf", {"sha256": SHA256}, "model"),
        ("file:///etc/passwd", {"sha256": SHA256}, "model"),
        ("ftp://host/m.gguf", {"sha256": SHA256}, "model"),
        ("ollama:", {}, "model"),
        ("ollama:../x", {}, "model"),
        ("ollama:a/b/c/d", {}, "model"),
        ("ollama:x:../y", {}, "model"),
        ("ollama:x", {"sha256": SHA256}, "sha256"),
        ("ollama:x", {"files": ("a",)}, "files"),
        ("smollm2", {"name": "x"}, "name"),
        ("smollm2", {"files": ("x",)}, "files"),
    ],
)
def test_what_is_refused_names_its_field(
    model: str, options: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_source(model, PullOptions(**options))  # type: ignore[arg-type]
    assert [violation.field for violation in caught.value.violations] == [field]
    assert "pw" not in str(caught.value)


def test_a_name_that_cannot_be_made_is_asked_for() -> None:
    with pytest.raises(InvalidRequest, match="name: no name can be made"):
        UrlSource("https://host/", "", allow_http=False).local_name()


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("127.0.0.1.nip.io", "10.0.0.1", "localhost.host", "")))


@pytest.mark.parametrize(
    ("source", "command"),
    [
        ("hf:acme/Tiny@abc", "headrace pull hf:acme/Tiny@abc --as my:name"),
        (
            "hf:acme/Tiny/a*,b*@abc",
            'headrace pull hf:acme/Tiny@abc --file "a*" --file "b*" --as my:name',
        ),
        ("hf:gpt2@abc", "headrace pull hf:gpt2@abc --as my:name"),
        ("hf:gpt2/a.gguf@abc", 'headrace pull hf:gpt2@abc --file "a.gguf" --as my:name'),
        (
            "hf:acme/Tiny/sub/Tiny.Q4_1.gguf@abc",
            'headrace pull hf:acme/Tiny@abc --file "sub/Tiny.Q4_1.gguf" --as my:name',
        ),
        (
            "https://example.com/a.gguf@sha256:12ab",
            "headrace pull https://example.com/a.gguf --sha256 12ab --as my:name",
        ),
        ("ollama:tiny:1b@sha256:12ab", "headrace pull ollama:tiny:1b --as my:name"),
        ("tiny.gguf", None),
    ],
)
def test_what_was_pulled_can_be_pulled_again(source: str, command: str | None) -> None:
    assert command_for(source, "my:name") == command
