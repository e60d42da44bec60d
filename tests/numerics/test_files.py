"""QTensors through a file, and files whose parts disagree."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fewbits.errors import InputError
from fewbits.numerics import QType, cast, load, qtype, quantize, register, save, table

X = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))


def test_every_row_goes_through_a_file(tmp_path):
    rows = [row for row in table() if row.name != "e8m0"]
    tensors = {
        f"{row.name}.{axis}": quantize(X, row, channel_axis=axis)
        for row in rows
        for axis in (None, 0, 1)
        if not row.group_size or axis == 0
    }
    tensors["free"] = quantize(X, "uint4", group_size=64, search="least_squares")
    tensors["zero"] = quantize(X, "uint16", channel_axis=0, group_size=8)
    tensors["cast"] = cast(X, "fp8_e5m2")
    save(tmp_path / "q.safetensors", tensors)
    loaded = load(tmp_path / "q.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, q in tensors.items():
        back = loaded[name]
        assert torch.equal(back.codes, q.codes), name
        assert back.codes.dtype == q.codes.dtype
        assert torch.equal(back.dequantize(), q.dequantize()), name
        assert (back.qtype, back.channel_axis, back.group_size, back.nbytes) == (
            q.qtype,
            q.channel_axis,
            q.group_size,
            q.nbytes,
        )
        assert back.name == name
    stored = load_file(tmp_path / "q.safetensors")
    assert sum(t.numel() * t.element_size() for t in stored.values()) == sum(
        q.nbytes for q in tensors.values()
    )


class TestFilesWhosePartsDisagree:
    def write(self, path, changed: dict, metadata=None) -> None:
        save(path, {"w": quantize(X, "uint4", channel_axis=0)})
        with safe_open(path, "pt") as file:
            kept = metadata or file.metadata()
        tensors = {**load_file(path), **changed}
        save_file({k: v for k, v in tensors.items() if v is not None}, path, kept)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"w.codes": torch.zeros(5, dtype=torch.uint8)}, "tensor 'w': 192 uint4 codes are 96 bytes"),
            ({"w.codes": None}, "tensor 'w': it lacks 'w.codes'"),
            ({"w.scale": torch.ones(5)}, r"scale has shape \(5,\), the layout needs \(6,\)"),
            (
                {"w.scale": torch.tensor([1, 1, 1, 1, 1, float("nan")])},
                "scale is finite and positive, got nan",
            ),
            ({"w.scale": None}, "needs a scale"),
            ({"w.zero_point": torch.zeros(7, dtype=torch.uint8)}, "6 uint4 codes are 3 bytes"),
            ({"w.codebook": torch.zeros(4)}, "has no codebook"),
            ({"w.scale": torch.ones(6).half()}, "needs scale of torch.float32, got torch.float16"),
            ({"w.free_zero_point": torch.zeros(6)}, "a zero_point or a free_zero_point, not both"),
            ({"v.codes": torch.zeros(4)}, "it holds 'v.codes', which its metadata does not describe"),
        ],
    )
    def test_one_clear_error(self, tmp_path, changed, message):
        self.write(tmp_path / "bad.safetensors", changed)
        with pytest.raises(InputError, match=message) as raised:
            load(tmp_path / "bad.safetensors")
        assert "\n" not in str(raised.value)
        assert "bad.safetensors" in str(raised.value)

    @pytest.mark.parametrize(
        ("described", "message"),
        [
            ({"shape": [8, 16]}, "128 uint4 codes are 64 bytes"),
            ({"shape": "ab"}, "its description is not one that save writes"),
            ({"shape": None}, "its description is not one that save writes"),
            ({"channel_axis": 7}, "channel_axis 7 is not an axis"),
            ({"channel_axis": "x"}, "channel_axis is 'x'; give an integer or None"),
            ({"group_size": 5}, "group_size 5 does not divide the 32 elements"),
            ({"qtype": "int4"}, "its description is not one that save writes"),
            ({"qtype": {"name": "int99"}}, "unknown qtype 'int99'"),
        ],
    )
    def test_descriptions_that_are_wrong(self, tmp_path, described, message):
        save(tmp_path / "bad", {"w": quantize(X, "uint4", channel_axis=0)})
        with safe_open(tmp_path / "bad", "pt") as file:
            metadata = json.loads(file.metadata()["fewbits.qtensors"])
        metadata["w"] |= described
        self.write(tmp_path / "bad", {}, {"fewbits.qtensors": json.dumps(metadata)})
        with pytest.raises(InputError, match=f"bad: tensor 'w': .*{message}"):
            load(tmp_path / "bad")

    def test_scales_of_another_dtype(self, tmp_path):
        save(tmp_path / "mx", {"w": quantize(X, "mxfp4")})
        tensors = {**load_file(tmp_path / "mx"), "w.scale": torch.ones(6)}
        with safe_open(tmp_path / "mx", "pt") as file:
            save_file(tensors, tmp_path / "bad", file.metadata())
        with pytest.raises(InputError, match=r"scales are stored as torch.uint8, got torch.float32"):
            load(tmp_path / "bad")

    def test_another_kind_of_file(self, tmp_path):
        save_file({"w": X}, tmp_path / "plain.safetensors")
        with pytest.raises(InputError, match="not a file of QTensors"):
            load(tmp_path / "plain.safetensors")
        (tmp_path / "junk").write_bytes(b"hello")
        with pytest.raises(InputError, match="not a file of QTensors"):
            load(tmp_path / "junk")
        with pytest.raises(InputError, match="not a file of QTensors"):
            load(tmp_path / "missing")
        save_file({"w": X}, tmp_path / "list", {"fewbits.qtensors": "[1, 2]"})
        with pytest.raises(InputError, match="not a file of QTensors"):
            load(tmp_path / "list")

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(InputError, match=r"q\.safetensors cannot be written"):
            save(tmp_path / "none" / "q.safetensors", {"w": quantize(X, "int8")})

    def test_a_row_that_means_something_else_here(self, tmp_path, monkeypatch):
        register(QType("house", "int", 4, -8, 7))
        save(tmp_path / "f", {"w": quantize(X, "house")})
        monkeypatch.setitem(
            qtype._TABLE,
            "house",
            QType("house", "int", 4, -7, 7),
        )
        with pytest.raises(InputError, match="'house' was another format"):
            load(tmp_path / "f")
