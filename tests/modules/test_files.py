"""What is saved is what is loaded: codes as codes, tied weights tied, and as small as it says."""

import json
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import fewbits as fb
from fewbits.errors import InputError
from fewbits.modules.files import KEY
from tests.modules.layers import LAYERS, Tied, flat, ids, made

CHANGED = "its weights are not those of"


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad(), warnings.catch_warnings():
        # torch says it once, wherever it is called from
        warnings.filterwarnings("ignore", "LSTM with projections")
        yield


@pytest.mark.parametrize("recipe", ["w8", "w8a8_dynamic", "bf16"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_same_module_comes_back(name, recipe, tmp_path):
    module, inputs = made(name)
    small = fb.quantize(module, recipe)
    fb.save(small, tmp_path / "small.safetensors")
    again = fb.load(tmp_path / "small.safetensors", LAYERS[name][0]).eval()
    assert torch.equal(flat(small(*inputs)), flat(again(*inputs)))
    assert {k: v.dtype for k, v in again.state_dict().items()} == {
        k: v.dtype for k, v in small.state_dict().items()
    }


@pytest.mark.parametrize(
    "recipe", ["w4_g32", "w3_g32", "w_nf4_g32", "w_codebook4", "w_mxfp4", "w_nvfp4", "w_ternary"]
)
def test_every_format_comes_back(recipe, tmp_path):
    module, inputs = made("Linear")
    small = fb.quantize(module, recipe)
    fb.save(small, tmp_path / "small.safetensors")
    assert torch.equal(small(*inputs), fb.load(tmp_path / "small.safetensors", module)(*inputs))


def test_the_file_is_as_small_as_the_codes(tmp_path):
    module, _ = made("TransformerEncoder")
    small = fb.quantize(module, "w4_g32")
    path = tmp_path / "small.safetensors"
    fb.save(small, path)
    tensors = sum(value.nbytes for value in small.state_dict().values())
    assert tensors <= path.stat().st_size < tensors + 16_000
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("layers.0.linear1.weight.codes").dtype == torch.uint8


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    path = tmp_path / "small.safetensors"
    for recipe in ("w8", "bf16"):
        fb.save(fb.quantize(Tied(), recipe), path)
        assert not any(name.startswith("head") for name in load_file(path))
        again = fb.load(path, Tied)
        assert again.table.weight is again.head.weight


def test_float_parameters_stay_tied(tmp_path):
    path = tmp_path / "small.safetensors"

    def make():
        return nn.Sequential(Tied(), nn.Linear(64, 64))

    small = fb.quantize(make(), "w8", exclude=["0.*"])
    fb.save(small, path)
    again = fb.load(path, make)
    assert again[0].table.weight is again[0].head.weight
    torch.testing.assert_close(again(ids(64, 3)), small(ids(64, 3)))


def test_a_skeleton_without_values(tmp_path):
    path = tmp_path / "small.safetensors"
    module, inputs = made("TransformerEncoder")
    small = fb.quantize(module, "w4_g32")
    fb.save(small, path)
    with torch.device("meta"):
        skeleton = LAYERS["TransformerEncoder"][0]()
    again = fb.load(path, skeleton).eval()
    torch.testing.assert_close(again(*inputs), small(*inputs))
    assert skeleton.layers[0].linear1.weight.is_meta  # which is left alone


class Turns(nn.Module):
    """Holds a buffer that files do not."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(32, 32)
        self.register_buffer("turns", torch.rand(32) / 3, persistent=False)

    def forward(self, x):
        return self.layer(x * self.turns.to(x.dtype))


def test_what_a_module_makes_by_itself(tmp_path):
    path = tmp_path / "small.safetensors"
    for recipe in ("w8", "bf16"):
        small = fb.quantize(Turns(), recipe)
        assert small.turns.dtype == torch.float32
        fb.save(small, path)
        with torch.device("meta"):
            skeleton = Turns()
        refused(path, skeleton, "'turns'", "meta device")


def test_an_existing_module_of_that_kind_is_named_on_a_command_line(tmp_path):
    path = tmp_path / "small.safetensors"
    fb.save(fb.quantize(Tied(), "w8"), path)
    assert isinstance(fb.load(path, "tests.modules.layers:Tied"), Tied)


def refused(path, arch, *words):
    with pytest.raises(InputError) as error:
        fb.load(path, arch)
    text = str(error.value)
    assert str(path) in text and "\n" not in text
    for word in words:
        assert word in text


def test_what_cannot_be_loaded(tmp_path):
    path = tmp_path / "small.safetensors"
    refused(path, Tied, "no such file")
    save_file({"a": torch.zeros(2)}, path)
    refused(path, Tied, "holds no module that fewbits quantized")
    save_file({"a": torch.zeros(2)}, path, {KEY: json.dumps({"weights": 3})})
    refused(path, Tied, "is not one that fewbits.save writes")
    path.write_bytes(b"nothing")
    refused(path, Tied, "not a readable .safetensors file")
    fb.save(fb.quantize(Tied(), "w8"), path)
    refused(path, None, "fb.load(path, arch=...)")
    refused(path, lambda: nn.Linear(2, 2), CHANGED, "not in the model: table.weight")
    with pytest.raises(InputError, match="it must return"):
        fb.load(path, lambda: 3)
    refused(tmp_path, Tied, "leave it out here")


def changed(path, change):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors, metadata)
    other = path.with_name("other.safetensors")
    save_file(tensors, other, metadata)
    return other


def test_missing_extra_and_other_keys(tmp_path):
    path = tmp_path / "small.safetensors"
    fb.save(fb.quantize(Tied(), "w8"), path)
    refused(
        changed(path, lambda t, m: t.pop("norm.weight")), Tied, CHANGED, "missing in the file: norm.weight"
    )
    refused(
        changed(path, lambda t, m: t.update(more=torch.zeros(2))), Tied, CHANGED, "not in the model: more"
    )
    refused(
        changed(path, lambda t, m: t.pop("table.weight.codes")), Tied, "table.weight", "codes are 2048 bytes"
    )
    refused(
        changed(path, lambda t, m: t.update({"table.weight.scale": torch.ones(3)})),
        Tied,
        "scale has shape (3,)",
    )
    refused(
        changed(path, lambda t, m: t.update({"norm.weight": torch.ones(3)})),
        Tied,
        "shapes differ: norm.weight",
    )

    def renamed(tensors, metadata):
        metadata[KEY] = metadata[KEY].replace('"float"', '"tomorrow"')

    refused(changed(path, renamed), Tied, "tomorrow")

    class Wider(Tied):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(65, 32)

    refused(path, Wider, "shapes differ: table.weight is [64, 32] in the file and [65, 32]")


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(InputError, match="nothing in the module is codes"):
        fb.save(Tied(), tmp_path / "small.safetensors")
    with pytest.raises(InputError, match="cannot be written"):
        fb.save(fb.quantize(Tied(), "w8"), tmp_path / "nowhere" / "small.safetensors")
