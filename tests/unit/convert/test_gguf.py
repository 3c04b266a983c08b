"""Headers of GGUF files: read right, and every damage found before it does harm."""

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.convert.gguf import is_gguf, read_gguf
from headrace_runner.convert.gguf_model import GgufModel
from headrace_runner.convert.tokenizer import read_tokenizer


def test_reads_what_the_reference_reader_reads(tiny_gguf: Path) -> None:
    file, wanted = read_gguf(tiny_gguf), gguf.GGUFReader(tiny_gguf)
    assert set(file.tensors) == {tensor.name for tensor in wanted.tensors}
    for tensor in wanted.tensors:
        info = file.tensors[tensor.name]
        assert info.offset == tensor.data_offset
        assert info.shape == tuple(int(n) for n in tensor.shape[::-1])
        assert file.read(info).tobytes() == tensor.data.tobytes()
    for key, value in file.metadata.items():
        assert value == wanted.fields[key].contents()


def test_every_truncation_is_found(tiny_gguf: Path, tmp_path: Path) -> None:
    data = tiny_gguf.read_bytes()
    damaged = tmp_path / "cut.gguf"
    for length in [*range(0, len(data), 997), len(data) - 1]:
        damaged.write_bytes(data[:length])
        with pytest.raises(ModelCorrupt) as caught:
            read_gguf(damaged)
        assert caught.value.metadata["file"] == "cut.gguf"


def test_flipped_bytes_never_give_another_error(tiny_gguf: Path, tmp_path: Path) -> None:
    data = tiny_gguf.read_bytes()
    header_end = min(tensor.offset for tensor in read_gguf(tiny_gguf).tensors.values())
    damaged = tmp_path / "flipped.gguf"
    dice = random.Random(5)
    refused = 0
    for _ in range(300):
        copy = bytearray(data)
        for _ in range(dice.choice([1, 1, 8])):
            copy[dice.randrange(header_end)] = dice.randrange(256)
        damaged.write_bytes(copy)
        try:
            file = read_gguf(damaged)
            GgufModel(file).config()
            read_tokenizer(file)
        except (ModelCorrupt, UnsupportedModel):
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("offset", [8, 16])
def test_a_huge_count_ends_at_once(tiny_gguf: Path, tmp_path: Path, offset: int) -> None:
    copy = bytearray(tiny_gguf.read_bytes())
    copy[offset : offset + 8] = struct.pack("<Q", 1 << 60)
    (tmp_path / "huge.gguf").write_bytes(copy)
    with pytest.raises((ModelCorrupt, UnsupportedModel)):
        read_gguf(tmp_path / "huge.gguf")


def test_another_version_is_unsupported(tmp_path: Path) -> None:
    (tmp_path / "old.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    with pytest.raises(UnsupportedModel, match="version 1"):
        read_gguf(tmp_path / "old.gguf")


def test_an_unread_tensor_type_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    tensor = np.zeros((1, 292), np.uint8)
    writer.add_tensor("blk.0.attn_q.weight", tensor, raw_dtype=gguf.GGMLQuantizationType.Q8_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModel, match="Q8_K"):
        read_gguf(tmp_path / "k.gguf")


def test_known_by_its_magic(tiny_gguf: Path, tmp_path: Path) -> None:
    assert is_gguf(tiny_gguf)
    nameless = tmp_path / "blob"
    nameless.write_bytes(tiny_gguf.read_bytes()[:64])
    assert is_gguf(nameless)
    nameless.write_bytes(b"PK\x03\x04")
    assert not is_gguf(nameless)
