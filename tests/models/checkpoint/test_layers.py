"""Which tensors are layers: by transformers' own classes, and by names where there is none."""

import pytest
import torch

from fewbits.errors import InputError
from fewbits.models.checkpoint.folder import open_checkpoint
from fewbits.models.checkpoint.layers import find_layers
from tests.checkpoints import MODELS, edit, plain, read_all, saved


def found(folder):
    return find_layers(open_checkpoint(folder))


def by_op(layers):
    ops = {}
    for layer in layers.info.layers:
        ops.setdefault(layer.op, set()).add(layer.name)
    return ops


def test_names_and_ranks_tell_where_no_class_does(tmp_path):
    layers = found(plain(tmp_path / "m"))
    assert by_op(layers) == {
        "Embedding": {"model.embed_tokens"},
        "Linear": {"model.layers.0.up", "model.layers.0.down", "head"},
        "Conv2d": {"model.conv"},
    }
    assert set(layers.others) == {"model.layers.0.up.bias", "model.layers.0.norm.weight", "model.steps"}
    assert layers.model is None
    assert "told by names and ranks: transformers" in layers.notes[0]
    assert "no class 'NotThere'" in layers.notes[0]


@pytest.mark.parametrize(
    "config", [{"architectures": None}, {"architectures": ["__version__"]}, {"architectures": [3]}]
)
def test_a_config_that_names_no_model(config, tmp_path):
    edit(plain(tmp_path / "m") / "config.json", **config)
    layers = found(tmp_path / "m")
    assert len(layers.info.layers) == 5 and "told by names and ranks" in layers.notes[0]


def test_a_config_of_a_known_class_that_cannot_be_built(tmp_path):
    pytest.importorskip("accelerate")
    folder = plain(tmp_path / "m", architectures=["LlamaForCausalLM"], hidden_size="wide")
    assert "transformers could not build LlamaForCausalLM" in found(folder).notes[0]


@pytest.mark.parametrize("name", MODELS)
def test_every_matrix_of_a_model_is_found(name, tmp_path):
    folder, model = saved(name, tmp_path / "m")
    layers = found(folder)
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    kinds = nn.Linear | nn.Embedding | nn.Conv2d | Conv1D
    tied = set(model.all_tied_weights_keys)
    wanted = sum(
        isinstance(module, kinds) and f"{path}.weight" not in tied for path, module in model.named_modules()
    )
    # Experts are merged into one parameter in memory, and are matrices of their own in the file.
    wanted += sum("experts" in one.name for one in layers.info.layers)
    assert len(layers.info.layers) == wanted
    assert layers.model == type(model).__name__
    assert layers.notes == ()
    names = {one.weights[0].name for one in layers.info.layers}
    assert names | set(layers.others) == set(read_all(folder))


def test_the_router_of_experts_is_no_layer(tmp_path):
    layers = found(saved("mixtral", tmp_path / "m")[0])
    routers = [what for name, (what, _) in layers.others.items() if ".gate." in name]
    assert routers == ["MixtralTopKRouter weight"] * 2


def test_shared_weights_have_one_layer_and_other_names(tmp_path):
    layers = found(saved("llama", tmp_path / "m")[0])
    assert layers.aliases == {"lm_head": "model.embed_tokens"} and layers.tied == {}
    layers = found(saved("t5", tmp_path / "n")[0])
    assert set(layers.aliases) == {"lm_head", "encoder.embed_tokens", "decoder.embed_tokens"}
    assert set(layers.aliases.values()) == {"shared"}


def test_missing_tensors_are_an_error(tmp_path):
    folder, _ = saved("llama", tmp_path / "m", without="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(
        InputError, match=r"1 tensors of LlamaForCausalLM are missing: model\.layers\.1\.mlp\.up_proj"
    ):
        found(folder)


def test_tensors_of_another_shape_are_an_error(tmp_path):
    folder, _ = saved("llama", tmp_path / "m")
    edit(folder / "config.json", vocab_size=120)
    with pytest.raises(InputError, match=r"embed_tokens.weight is \[100, 64\] and must be \[120, 64\]"):
        found(folder)


def test_more_tensors_than_the_model_has_are_kept_with_a_note(tmp_path):
    folder, _ = saved("llama", tmp_path / "m", more={"extra.weight": torch.ones(64, 64)})
    layers = found(folder)
    assert layers.notes == ("1 tensors that LlamaForCausalLM does not have are kept: extra.weight",)
    assert layers.others["extra.weight"][0] == "no layer of the model"


def test_tensors_in_few_bits_are_left(tmp_path):
    tensors = {"a.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn), "b.weight": torch.zeros(4, 4)}
    layers = found(plain(tmp_path / "m", tensors))
    assert [one.name for one in layers.info.layers] == ["b"]
    assert layers.others["a.weight"] == ("Linear", "is stored as F8_E4M3 already")


def test_code_of_its_own_is_never_run(tmp_path):
    folder, _ = saved("llama", tmp_path / "m")
    trap = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Net: ...\n"
    (folder / "modeling_own.py").write_text(trap)
    (folder / "configuration_own.py").write_text(trap)
    edit(
        folder / "config.json",
        auto_map={"AutoConfig": "configuration_own.Net", "AutoModelForCausalLM": "modeling_own.Net"},
        _attn_implementation="somebody/kernels",
    )
    checkpoint = open_checkpoint(folder)
    layers = find_layers(checkpoint)
    assert layers.model == "LlamaForCausalLM"
    assert checkpoint.notes == (
        "its config names code of its own (configuration_own.Net, modeling_own.Net), which fewbits copies and never "
        "runs",
    )
    assert not (folder / "ran").exists()
