"""The last look at a language model: what it lets pass, and what it finds."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from headrace.errors import UnsupportedModel
from headrace_runner.convert import selfcheck
from headrace_runner.convert.gguf_import import import_gguf
from headrace_runner.convert.selfcheck import JUDGED_PARAMETERS, SCRIPTS, check_text
from tests.unit.convert.tiny import byte_vocabulary


@pytest.fixture(scope="module")
def model(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("model")
    return output, import_gguf(tiny_gguf, output, lambda *_: None)


def test_a_model_that_cannot_be_computed(
    model: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, facts = model

    def fail(self: Any, *arguments: Any) -> None:
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(selfcheck, "JUDGED_PARAMETERS", 1000)
    monkeypatch.setattr("mlx_lm.models.llama.Model.__call__", fail)
    with pytest.raises(UnsupportedModel, match="RuntimeError: no kernel"):
        check_text(directory, facts, from_gguf=True)
    # Of a directory that is no mistake of the import.
    assert "no kernel" in check_text(directory, facts, from_gguf=False)


def with_tokenizer(tokenizer: Tokenizer, directory: Path) -> Path:
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def byte_level(without: str = "") -> Tokenizer:
    vocabulary = {t: i for i, t in enumerate(byte_vocabulary().tokens) if t not in without}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_a_small_model_is_not_judged_by_what_it_predicts(
    model: tuple[Path, dict[str, Any]],
) -> None:
    directory, facts = model
    assert "this small" in check_text(directory, facts, from_gguf=True)


def test_random_weights_predict_no_text(
    model: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, facts = model
    monkeypatch.setattr(selfcheck, "JUDGED_PARAMETERS", 1000)
    with pytest.raises(UnsupportedModel, match=r"predicts no text: .* nats"):
        check_text(directory, facts, from_gguf=True)


@pytest.mark.parametrize(
    ("parameters", "note"),
    [(JUDGED_PARAMETERS, "MiB of memory, and 100 are free"), (10**10, "minutes on a CPU")],
)
def test_what_would_take_too_much_is_not_tried(
    model: tuple[Path, dict[str, Any]],
    parameters: int,
    note: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory, facts = model
    monkeypatch.setattr("mlx.core.metal.is_available", lambda: False)
    monkeypatch.setattr("headrace.host.machine.memory_available", lambda: 100 << 20)
    assert note in check_text(directory, facts | {"parameters": parameters}, from_gguf=True)


def test_every_script_must_come_back(model: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    facts = model[1]
    assert check_text(with_tokenizer(byte_level(), tmp_path), facts, from_gguf=True)
    # A decoder that takes a letter of Thai for another.
    wrong = byte_level()
    wrong.decoder = decoders.Sequence([decoders.Replace("à", "á"), decoders.ByteLevel()])
    with pytest.raises(UnsupportedModel, match="as it was: Devanagari"):
        check_text(with_tokenizer(wrong, tmp_path), facts, from_gguf=True)
    # A model's own tokenizer may do so, and a vocabulary may lack a byte.
    check_text(with_tokenizer(wrong, tmp_path), facts, from_gguf=False)
    check_text(with_tokenizer(byte_level(without="à"), tmp_path), facts, from_gguf=True)


def test_spaces_and_case_may_be_lost_by_a_models_own_tokenizer_alone(
    model: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    facts = model[1]
    lossy = byte_level()
    lossy.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", behavior="removed"), pre_tokenizers.ByteLevel(False)]
    )
    check_text(with_tokenizer(lossy, tmp_path), facts, from_gguf=False)
    with pytest.raises(UnsupportedModel, match="ASCII"):
        check_text(with_tokenizer(lossy, tmp_path), facts, from_gguf=True)
    # Letters may not.
    nothing = byte_level(without="q")
    with pytest.raises(UnsupportedModel, match="ASCII"):
        check_text(with_tokenizer(nothing, tmp_path), facts, from_gguf=False)


def test_what_is_unknown_is_no_mistake_and_composing_neither(
    model: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    letters = {letter for text in SCRIPTS["ASCII"] for letter in text}
    vocabulary = {letter: i for i, letter in enumerate(["<unk>", *sorted(letters)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken("<unk>", special=True)])
    tokenizer.decoder = decoders.Fuse()
    check_text(with_tokenizer(tokenizer, tmp_path), model[1], from_gguf=True)
    composing = byte_level()
    composing.normalizer = normalizers.NFC()
    check_text(with_tokenizer(composing, tmp_path), model[1], from_gguf=True)
