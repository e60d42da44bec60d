"""Files laid out, written in slices and read by the safetensors library; headers that lie."""

import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fewbits.errors import InputError
from fewbits.models.checkpoint.stored import (
    DTYPES,
    create,
    lay_out,
    read_bytes,
    read_header,
    write_bytes,
)

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8).filter(
    lambda name: name != "__metadata__"
)


def file_of(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def one(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@given(tensors=st.dictionaries(NAMES, st.tuples(st.sampled_from(list(DTYPES)), SHAPES), max_size=6))
@settings(max_examples=60, deadline=None)
def test_the_library_reads_what_was_laid_out_and_written(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "a.safetensors"
    shard = lay_out(path, tensors, {"format": "pt"})
    create(shard)
    written = {}
    for number, entry in enumerate(shard.entries):
        assert entry.start % DTYPES[entry.dtype].itemsize == 0
        data = torch.arange(entry.nbytes).add(number).fmod(2 if entry.dtype == "BOOL" else 97).to(torch.uint8)
        for start in range(0, entry.nbytes, 5):
            write_bytes(path, entry.start + start, data[start : start + 5].contiguous())
        written[entry.name] = data
    found = load_file(path)
    assert set(found) == set(tensors)
    for name, tensor in found.items():
        dtype, shape = tensors[name]
        assert tensor.dtype == DTYPES[dtype] and tuple(tensor.shape) == shape
        assert torch.equal(tensor.contiguous().reshape(-1).view(torch.uint8), written[name])
    again = read_header(path)
    assert {entry.name: entry for entry in again.entries} == {entry.name: entry for entry in shard.entries}
    assert again.metadata == {"format": "pt"}


def test_what_the_library_writes_is_read(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(7), "c": torch.ones((), dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "a.safetensors")
    shard = read_header(tmp_path / "a.safetensors")
    for entry in shard.entries:
        raw = read_bytes(shard.path, entry.start, entry.nbytes)
        assert torch.equal(raw.view(DTYPES[entry.dtype]).reshape(entry.shape), tensors[entry.name])


@pytest.mark.parametrize("keep", [0, 4, 8, 40, 120, -1])
def test_a_file_cut_short_anywhere_is_refused(keep, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"weights": torch.zeros(64), "more": torch.zeros(64)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"a\.safetensors.*(cut short|download it again)"):
        read_header(path)


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        (b"not json", b"", "its header is not one of safetensors"),
        (b"[1, 2]", b"", "its header is not one of safetensors"),
        ({"a": [1]}, b"", "its header is not one of safetensors"),
        ({"a": {"dtype": "F32"}}, b"", "its header is not one of safetensors"),
        ({"a": one(offsets="ab")}, bytes(8), "damaged: tensor 'a', F32 .* at bytes a to b"),
        ({"a": one("F4")}, bytes(8), "tensor 'a' has the dtype 'F4'; known are F64, F32"),
        ({"a": one(shape=(3,))}, bytes(8), r"damaged: tensor 'a', F32 \[3\], lies at bytes 0 to 8"),
        ({"a": one(shape=(-2,))}, bytes(8), "damaged: tensor 'a'"),
        ({"a": one(shape=(2.0,))}, bytes(8), "damaged: tensor 'a'"),
        ({"a": one(offsets=(8, 16))}, bytes(16), "damaged: there are gaps or overlaps before tensor 'a'"),
        (
            {"a": one(), "b": one(offsets=(4, 12))},
            bytes(12),
            "damaged: there are gaps or overlaps before tensor 'b'",
        ),
        ({"a": one()}, bytes(9), "damaged: 1 bytes follow its last tensor"),
        ({"a": one(offsets=(0, 1 << 70), shape=(1 << 68,))}, bytes(9), "cut short"),
    ],
)
def test_a_header_that_lies_is_refused(header, data, said, tmp_path):
    with pytest.raises(InputError, match=rf"^\S+a\.safetensors: {said}"):
        read_header(file_of(tmp_path / "a.safetensors", header, data))


def test_a_length_beyond_the_file_reads_nothing(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(InputError, match="not a safetensors file"):
        read_header(path)


def test_a_file_that_became_shorter(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(10))
    with pytest.raises(InputError, match="became shorter"):
        read_bytes(path, 4, 8)
