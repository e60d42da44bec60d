"""Hugging Face directories, end to end: from Python and from the command line, written, read back, loaded."""

import importlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fewbits as fb
from fewbits.errors import InputError, VerificationError
from fewbits.models.checkpoint import plan as planning
from fewbits.models.checkpoint import write as writing
from fewbits.models.checkpoint.compressed_tensors import CompressedTensors
from fewbits.modules.files import coded_weights
from fewbits.numerics import quantize
from fewbits.planning.model_info import WeightInfo
from fewbits.planning.recipe import PRESETS, STORED, read_recipe
from fewbits.planning.scheme import Scheme
from fewbits.report.record import Report
from tests.checkpoints import MODELS, edit, example, plain, plain_tensors, read_all, saved
from tests.conftest import contents

RULE = 'name = "mine"\n[[rules]]\nmatch = "{match}"\nweights = {{qtype = "{qtype}", per = "channel"}}\n'
RECIPES = ("w8", "w4_g32", "fp8", "fp16")
INT8, INT4 = Scheme("int8", per="channel"), Scheme("int4", per="group", group_size=32, range="mse")


def compressed(folder, out, recipe="w8", **arguments):
    return fb.compress(folder, recipe=recipe, out=out, **arguments)


def stored_codes(folder, name, scheme, dtype="BF16"):
    """Codes and scale of a weight, and what it is loaded as, read by the safetensors library."""
    tensors = read_all(folder)
    shape = tuple(tensors[f"{name}_shape"].tolist())
    parts = {key: value for key, value in tensors.items() if key.startswith(name)}
    return CompressedTensors().decode(weight_of(shape, name), dtype, scheme, parts, shape[0])


def weight_of(shape, name):
    return WeightInfo(name, tuple(shape), 0, 1)


# --- what is written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
def test_the_same_directory_in_fewer_bits(shards, tmp_path):
    source = plain(tmp_path / "m", shards=shards)
    (source / "sub").mkdir()
    (source / "sub" / "more.json").write_text("{}")
    (source / ".hidden").write_text("x")
    (source / "pytorch_model.bin").write_bytes(b"x" * 10)
    result = compressed(source, tmp_path / "out", "w4_g32")
    out = tmp_path / "out"
    assert result.met and result.folder == out
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    weights = {file.name for file in source.glob("*.safetensors*")}
    assert names == weights | {
        "config.json",
        "tokenizer.json",
        "sub/more.json",
        "report.json",
        "report.html",
        "recipe.toml",
        "run.py",
    }
    before, after = plain_tensors(), read_all(out)
    for name in (
        "model.embed_tokens.weight",
        "model.conv.weight",
        "model.layers.0.norm.weight",
        "model.steps",
    ):
        assert torch.equal(after[name], before[name])
    for name in ("model.layers.0.up.weight", "model.layers.0.down.weight", "head.weight"):
        wanted = CompressedTensors().round(before[name], weight_of(before[name].shape, name), "BF16", INT4)
        found, _ = stored_codes(out, name, INT4)
        assert torch.equal(found.codes, wanted.codes) and torch.equal(found.scale, wanted.scale)
    if shards > 1:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(after)
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())
        for name, file in index["weight_map"].items():
            assert name in read_all_of(out / file)


def read_all_of(file):
    from safetensors.torch import load_file

    return load_file(file)


def test_the_config_tells_how_to_load_it(tmp_path):
    compressed(plain(tmp_path / "m", torch_dtype="bfloat16", other={"x": 1}), tmp_path / "out", "w4_g32")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16" and config["other"] == {"x": 1}
    quantization = config["quantization_config"]
    assert quantization["quant_method"] == "compressed-tensors" and quantization["dequantize"] is True
    (group,) = quantization["config_groups"].values()
    assert group["targets"] == ["Linear"] and group["format"] == quantization["format"] == "pack-quantized"
    assert group["weights"] == {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 32,
    }


def test_layers_left_in_float_are_named_for_other_readers(tmp_path):
    compressed(plain(tmp_path / "m"), tmp_path / "out", exclude=["head"])
    quantization = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert quantization["ignore"] == ["head"]
    assert quantization["config_groups"]["group_0"]["targets"] == ["Embedding", "Linear"]
    assert torch.equal(read_all(tmp_path / "out")["head.weight"], plain_tensors()["head.weight"])


@pytest.mark.parametrize(("recipe", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_narrower_floats(recipe, dtype, tmp_path):
    source = plain(
        tmp_path / "m", plain_tensors(torch.float32), dtype="float32", text_config={"dtype": "float32"}
    )
    result = compressed(source, tmp_path / "out", recipe)
    after = read_all(tmp_path / "out")
    for name, tensor in plain_tensors(torch.float32).items():
        wanted = tensor.to(dtype) if tensor.is_floating_point() else tensor
        assert torch.equal(after[name], wanted) and after[name].dtype == wanted.dtype
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    named = str(dtype).removeprefix("torch.")
    assert config["dtype"] == config["text_config"]["dtype"] == named
    assert "quantization_config" not in config
    assert result.report.left_in_float == ()


def test_what_is_kept_from_a_narrower_float_is_not_rounded_at_load(tmp_path):
    source = plain(tmp_path / "m", plain_tensors(torch.float32), dtype="float32")
    compressed(source, tmp_path / "out", "fp16", exclude=["head"])
    after = read_all(tmp_path / "out")
    assert after["head.weight"].dtype == after["model.layers.0.norm.weight"].dtype == torch.float32
    assert after["model.embed_tokens.weight"].dtype == torch.float16
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


def test_double_precision_comes_down(tmp_path):
    source = plain(tmp_path / "m", plain_tensors(torch.float64))
    compressed(source, tmp_path / "out", "w8")
    wanted = quantize(plain_tensors(torch.float64)["head.weight"], "int8", channel_axis=0)
    found, values = stored_codes(tmp_path / "out", "head.weight", INT8, "F64")
    assert torch.equal(found.codes, wanted.codes) and torch.equal(found.scale, wanted.scale)
    assert values.dtype == torch.float32


@pytest.mark.parametrize("recipe", RECIPES)
def test_slices_and_threads_change_nothing(recipe, tmp_path, monkeypatch):
    dtype = torch.float32 if recipe == "fp16" else torch.bfloat16
    source = plain(tmp_path / "m", plain_tensors(dtype), shards=2)
    compressed(source, tmp_path / "a", recipe, threads=1)
    monkeypatch.setattr(planning, "SLICE", 1)
    compressed(source, tmp_path / "b", recipe, threads=3)
    files = [path.name for path in (tmp_path / "a").glob("*.safetensors*")]
    assert len(files) == 3
    for name in (*files, "config.json", "recipe.toml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    one, other = (Report.from_json((tmp_path / at / "report.json").read_bytes()) for at in "ab")
    for a, b in zip(one.layers, other.layers, strict=True):
        assert a.weight_sqnr_db == pytest.approx(b.weight_sqnr_db, abs=1e-3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_it_leaves_makes_the_same_bytes(recipe, tmp_path):
    source = plain(tmp_path / "m", plain_tensors(torch.float32))
    compressed(source, tmp_path / "a", recipe, exclude=["*.up"])
    again = compressed(source, tmp_path / "b", str(tmp_path / "a" / "recipe.toml"))
    for name in ("model.safetensors", "config.json", "recipe.toml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert again.report.chosen == recipe


def test_what_would_not_shrink_is_kept(tmp_path):
    tensors = {"a.weight": torch.randn(3, 2, dtype=torch.bfloat16), "b.weight": torch.randn(64, 64)}
    result = compressed(plain(tmp_path / "m", tensors), tmp_path / "out")
    (small, _) = sorted(result.report.layers, key=lambda layer: layer.name)
    assert small.why == "too small to gain anything"
    assert torch.equal(read_all(tmp_path / "out")["a.weight"], tensors["a.weight"])


def test_empty_tensors_pass_through(tmp_path):
    tensors = plain_tensors() | {"none.weight": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}
    compressed(plain(tmp_path / "m", tensors), tmp_path / "out")
    after = read_all(tmp_path / "out")
    assert after["none.weight"].shape == (0, 4) and after["scalar"] == 2.5


# --- the report ---------------------------------------------------------------------------------------------------


def test_the_report_says_what_was_measured_and_no_more(tmp_path):
    result = compressed(plain(tmp_path / "m"), tmp_path / "out", "w4_g32")
    report = Report.from_json((tmp_path / "out" / "report.json").read_bytes())
    assert report == result.report
    original, made = report.candidates
    assert original.original and original.metric is None
    assert made.speedup is None and made.latency_ms.p50 is None and made.drop is None
    assert made.note == "its speed and its outputs were not measured"
    assert "neither its speed nor its outputs were measured" in report.verdict
    assert made.size_bytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert report.source.size_bytes == (tmp_path / "m" / "model.safetensors").stat().st_size
    tensors = plain_tensors()
    signal = noise = 0.0
    for layer in report.layers:
        name = f"{layer.name}.weight"
        if layer.why is None:
            _, values = stored_codes(tmp_path / "out", name, INT4)
            before = tensors[name].double()
            lost = float((values.double() - before).square().sum())
            assert layer.weight_sqnr_db == pytest.approx(
                10 * np.log10(float(before.square().sum()) / lost), 1e-4
            )
            signal, noise = signal + float(before.square().sum()), noise + lost
            assert (layer.bits, layer.scheme) == (4, "int4 per g32")
    assert made.metric == pytest.approx(10 * np.log10(signal / noise), 1e-4)
    kept = {layer.name: layer.why for layer in report.layers if layer.why}
    assert set(kept) == {"model.embed_tokens", "model.conv"}
    assert "one scheme" in kept["model.embed_tokens"] and "linear layers and embeddings" in kept["model.conv"]
    assert sum(report.bytes_by_dtype.values()) == sum(t.nbytes for t in read_all(tmp_path / "out").values())
    assert report.bytes_by_dtype["int4"] == sum(64 * 96 for _ in range(2)) // 2 + 40 * 64 // 2
    assert {(one.op, one.count) for one in report.left_in_float} == {
        ("parameter", 2),
        ("Embedding", 1),
        ("Conv2d", 1),
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert "w4_g32" in page and "model.layers.0.up" in page


def test_a_limit_on_size(tmp_path, command):
    source = plain(tmp_path / "m")
    answer = command("compress", source, "--recipe", "w8", "--max-size", "70%", "--out", tmp_path / "a")
    assert answer.code == 0
    answer = command("compress", source, "--recipe", "w8", "--max-size", "10%", "--out", tmp_path / "b")
    assert answer.code == 3
    report = Report.from_json((tmp_path / "b" / "report.json").read_bytes())
    assert report.chosen is None and report.saved == "w8" and "MB is over" in report.verdict
    assert (tmp_path / "b" / "model.safetensors").is_file()


def test_from_the_command_line(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain(tmp_path / "tiny-1.5B")
    answer = command(
        "compress", "tiny-1.5B", "--recipe", "w8", "--exclude", "head", "--threads", "2", "--json"
    )
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)
    assert report["chosen"] == "w8" and report["source"]["format"] == "huggingface"
    assert (tmp_path / "tiny-1.5B-fewbits" / "config.json").is_file()
    again = command("compress", "tiny-1.5B", "--recipe", "fp8")
    assert again.code == 0 and "neither its speed nor its outputs" in again.out


def test_progress_is_told_in_megabytes(tmp_path):
    told = []
    source = plain(tmp_path / "m", {"a.weight": torch.randn(2000, 1000)})
    compressed(source, tmp_path / "out", progress=lambda *what: told.append(what))
    assert told[0] == ("open", 0, 0) and told[-1] == ("write, MB", 8, 8)


# --- loaded by transformers ---------------------------------------------------------------------------------------


def loaded(folder):
    pytest.importorskip("compressed_tensors")
    return fb.load(folder)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("recipe", ["w8", "w4_g32", "fp8"])
def test_transformers_computes_with_the_dequantized_weights(name, recipe, tmp_path):
    """What transformers makes of the directory gives, bit by bit, what the float model does with those weights."""
    source, model = saved(name, tmp_path / "m")
    compressed(source, tmp_path / "out", recipe)
    again = loaded(tmp_path / "out")
    values = dequantized(tmp_path / "m", tmp_path / "out", tmp_path / "float")
    inputs = example(name, torch.bfloat16)
    with torch.no_grad():
        wanted = values(**inputs).logits
        assert torch.equal(again(**inputs).logits, wanted)
        original = model(**inputs).logits
    assert again.dtype == torch.bfloat16
    assert not torch.equal(wanted, original)


def dequantized(source, compressed_folder, place):
    """The model with its weights replaced by what the codes in a directory stand for."""
    import transformers

    report = Report.from_json((compressed_folder / "report.json").read_bytes())
    recipe = read_recipe(str(compressed_folder / "recipe.toml"), ("int8", "int4", "fp8_e4m3fn")).recipe
    schemes = {str(rule.weights): rule.weights for rule in recipe.rules if rule.weights}
    tensors = read_all(source)
    stored = read_all(compressed_folder)
    for layer in report.layers:
        if layer.why is None:
            name = f"{layer.name}.weight"
            parts = {key: value for key, value in stored.items() if key.startswith(name)}
            _, tensors[name] = CompressedTensors().decode(
                weight_of(layer.shape, name), "BF16", schemes[layer.scheme], parts, layer.shape[0]
            )
    shutil.copytree(source, place)
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    name = json.loads((source / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(place).eval()


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_tied_weights_are_quantized_once_and_still_tied(name, tmp_path):
    source, _ = saved(name, tmp_path / "m", shard="40KB")
    result = compressed(source, tmp_path / "out", "w8")
    codes = [
        key for key in read_all(tmp_path / "out") if "embed" in key or "shared" in key or "lm_head" in key
    ]
    assert len({key.rpartition(".")[0] for key in codes}) == 1
    assert (
        sum(layer.op == "Embedding" and "relative" not in layer.name for layer in result.report.layers) == 1
    )
    model = loaded(tmp_path / "out")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_tied_weight_stored_twice_is_stored_once(tmp_path):
    source, _ = saved("llama", tmp_path / "m")
    table = read_all(source)["model.embed_tokens.weight"]
    save_file(
        read_all(source) | {"lm_head.weight": table.clone()}, source / "model.safetensors", {"format": "pt"}
    )
    result = compressed(source, tmp_path / "out", "w8")
    assert not any("lm_head" in key for key in read_all(tmp_path / "out"))
    assert "stored once, as they are tied: lm_head.weight" in result.report.notes
    other = read_all(source) | {"lm_head.weight": table + 1}
    save_file(other, source / "model.safetensors", {"format": "pt"})
    result = compressed(source, tmp_path / "out", "w8")
    assert torch.equal(read_all(tmp_path / "out")["lm_head.weight"], table + 1)
    assert any("stored with other values" in note for note in result.report.notes)


def test_a_name_that_only_shares_a_weight_can_be_excluded(tmp_path):
    source, _ = saved("llama", tmp_path / "m")
    compressed(source, tmp_path / "out", "w8", exclude=["lm_head"])
    before, after = read_all(source), read_all(tmp_path / "out")
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_narrower_floats_are_loaded(tmp_path):
    source, model = saved("bert", tmp_path / "m", torch.float32)
    result = compressed(source, tmp_path / "out", "bf16")
    inputs = example("bert", torch.float32)
    with torch.no_grad():
        assert torch.equal(result.model(**inputs).logits, model.to(torch.bfloat16)(**inputs).logits)


def test_the_lines_that_load_it(tmp_path, monkeypatch):
    source, _ = saved("llama", tmp_path / "m", torch.float32)
    compressed(source, tmp_path / "out", "bf16")
    names = {"__file__": str(tmp_path / "out" / "run.py")}
    exec((tmp_path / "out" / "run.py").read_text(), names)
    assert type(names["model"]).__name__ == "LlamaForCausalLM" and names["model"].dtype == torch.bfloat16


def test_a_result_is_saved_elsewhere_and_loaded(tmp_path):
    source, _ = saved("llama", tmp_path / "m", torch.float32)
    result = fb.compress(source, recipe="fp16")
    result.save(tmp_path / "copy")
    assert fb.load(tmp_path / "copy").dtype == torch.float16
    with pytest.raises(InputError, match="a Hugging Face directory, which no engine runs"):
        fb.measure(tmp_path / "copy")


def test_code_that_comes_along_is_copied_and_never_run(tmp_path):
    source, _ = saved("llama", tmp_path / "m")
    ran = tmp_path / "ran"
    (source / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Net: ...\n")
    edit(source / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.Net"})
    result = compressed(source, tmp_path / "out", "fp8")
    assert any("names code of its own (modeling_own.Net)" in note for note in result.report.notes)
    assert (tmp_path / "out" / "modeling_own.py").is_file()
    loaded(tmp_path / "out")
    assert not ran.exists()


def test_a_directory_in_which_transformers_misses_weights_is_not_loaded(tmp_path):
    source, _ = saved("llama", tmp_path / "m", torch.float32)
    compressed(source, tmp_path / "out", "bf16")
    tensors = read_all(tmp_path / "out")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    with pytest.raises(VerificationError, match=r"does not find model\.norm\.weight"):
        fb.load(tmp_path / "out")


# --- in fewbits' own format -----------------------------------------------------------------------------------------

OWN = ("w_nf4_g32", "w_codebook4", "w_ternary", "w_binary_g32", "w_mxfp4", "w_nvfp4", "w_log4_g32")


@pytest.mark.parametrize("recipe", OWN)
@pytest.mark.parametrize("shards", [1, 3])
def test_formats_that_transformers_does_not_read(recipe, shards, tmp_path, monkeypatch):
    source = plain(tmp_path / "m", shards=shards)
    result = compressed(source, tmp_path / "out", recipe, threads=1)
    assert any("written in fewbits' own format" in note for note in result.report.notes)
    files = {path.name for path in (tmp_path / "out").glob("*.safetensors*")}
    assert files == {path.name.replace("model", "fewbits") for path in source.glob("*.safetensors*")}
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    schemes = {layer.name: layer.scheme for layer in result.report.layers}
    assert schemes["model.embed_tokens"] == schemes["model.conv"] == "int8 per channel"
    assert schemes["head"].startswith(recipe.removeprefix("w_").partition("_")[0])
    monkeypatch.setattr(planning, "SLICE", 1)
    compressed(source, tmp_path / "again", str(tmp_path / "out" / "recipe.toml"), threads=3)
    for name in (*files, "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("name", ["llama", "t5", "gpt2", "bert", "vit"])
@pytest.mark.parametrize("recipe", ["w_nf4_g32", "w_ternary_g32"])
def test_they_are_loaded_as_codes(name, recipe, tmp_path):
    source, model = saved(name, tmp_path / "m", torch.float32, shard="200KB")
    compressed(source, tmp_path / "out", recipe)
    again = fb.load(tmp_path / "out")
    assert type(again) is type(model) and not again.training
    inputs = example(name, torch.float32)
    with torch.no_grad():
        found = again(**inputs).logits
        for path, weight in coded_weights(again).items():
            for one in weight:
                owner, _, attribute = one.rpartition(".")
                setattr(model.get_submodule(owner), attribute, torch.nn.Parameter(path.dequantize()))
        wanted = model(**inputs).logits
    # A kernel for few rows of 4 bits computes in bfloat16.
    assert float((found - wanted).square().sum()) < 1e-4 * float(wanted.square().sum())
    held = sum(value.nbytes for value in again.state_dict().values())
    assert held < 0.5 * sum(value.nbytes for value in model.state_dict().values())


def test_tied_weights_are_one_in_memory_too(tmp_path):
    source, _ = saved("llama", tmp_path / "m")
    compressed(source, tmp_path / "out", "w_nf4_g32")
    model = fb.load(tmp_path / "out")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert len(model.generate(torch.arange(5)[None], max_new_tokens=3, do_sample=False)[0]) == 8


def test_tied_weights_in_float_are_one(tmp_path):
    source, _ = saved("llama", tmp_path / "m")
    compressed(source, tmp_path / "out", "w_nf4_g32", exclude=["lm_head"])
    model = fb.load(tmp_path / "out")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_a_recipe_of_ones_own_is_followed_to_the_letter(tmp_path):
    """Several schemes beside each other, and convolutions: what transformers does not read."""
    (tmp_path / "own.toml").write_text(
        RULE.format(match="head", qtype="int4")
        + RULE.format(match="Conv2d", qtype="int8").partition("\n")[2]
        + RULE.format(match="Linear", qtype="fp8_e5m2").partition("\n")[2]
    )
    result = compressed(plain(tmp_path / "m"), tmp_path / "out", str(tmp_path / "own.toml"))
    assert {layer.name: layer.scheme for layer in result.report.layers} == {
        "head": "int4 per channel",
        "model.conv": "int8 per channel",
        "model.layers.0.up": "fp8_e5m2 per channel",
        "model.layers.0.down": "fp8_e5m2 per channel",
        "model.embed_tokens": "bfloat16",
    }


def test_a_recipe_of_ones_own_in_one_scheme_is_for_transformers(tmp_path):
    (tmp_path / "own.toml").write_text(RULE.format(match="linear", qtype="int4"))
    compressed(plain(tmp_path / "m"), tmp_path / "out", str(tmp_path / "own.toml"))
    assert "head.weight_packed" in read_all(tmp_path / "out")


def test_convolutions_alone(tmp_path):
    tensors = {"a.weight": torch.randn(32, 16, 3, 3), "a.bias": torch.zeros(32)}
    result = compressed(plain(tmp_path / "m", tensors), tmp_path / "out", "w8")
    assert (tmp_path / "out" / "fewbits.safetensors").is_file()
    (layer,) = result.report.layers
    assert (layer.op, layer.scheme) == ("Conv2d", "int8 per channel") and layer.weight_sqnr_db > 40


def test_experts_are_not_for_the_own_format(refused, place):
    saved("mixtral", place / "m")
    line = refused("compress", "m", "--recipe", "w_nf4_g32")
    assert "stores apart what its class merges into model.layers.0.mlp.experts" in line


def test_a_folder_without_a_file_of_its_own_format(tmp_path):
    source, _ = saved("llama", tmp_path / "m", shard="40KB")
    compressed(source, tmp_path / "out", "w_nf4_g32")
    shards = sorted((tmp_path / "out").glob("fewbits-*.safetensors"))
    shards[1].unlink()
    with pytest.raises(InputError, match=r"1 of its \d+ shards are missing"):
        fb.load(tmp_path / "out")


# --- what is wrong ------------------------------------------------------------------------------------------------


def test_folders_that_are_no_checkpoints(refused, place):
    (place / "empty").mkdir()
    assert "a folder without config.json; give a Hugging Face directory" in refused(
        "compress", "empty", "--recipe", "w8"
    )
    plain(place / "m")
    (place / "m" / "config.json").write_text("{")
    assert "config.json: not readable JSON" in refused("compress", "m", "--recipe", "w8")
    (place / "m" / "config.json").write_text("[]")
    assert "holds a list; it must be a JSON object" in refused("compress", "m", "--recipe", "w8")
    (place / "m" / "config.json").write_text("{}")
    (place / "m" / "model.safetensors").unlink()
    assert "neither model.safetensors nor" in refused("compress", "m", "--recipe", "w8")
    (place / "m" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "Python pickles (pytorch_model.bin)" in refused("compress", "m", "--recipe", "w8")


def test_a_missing_shard(refused, place):
    source = plain(place / "m", shards=3)
    (source / "model-00002-of-00003.safetensors").unlink()
    line = refused("compress", source, "--recipe", "w8")
    assert "1 of its 3 shards are missing: model-00002-of-00003.safetensors; download them" in line


@pytest.mark.parametrize("cut", [3, 100, -1])
def test_a_shard_cut_short(cut, refused, place):
    file = plain(place / "m", shards=2) / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    line = refused("compress", place / "m", "--recipe", "w8")
    assert "model-00001-of-00002.safetensors" in line and "download it again" in line


@pytest.mark.parametrize(
    "file",
    [
        "../other/model.safetensors",
        "/etc/passwd.safetensors",
        "a/../../b.safetensors",
        "..\\b.safetensors",
        "C:b.safetensors",
        3,
    ],
)
def test_an_index_that_leaves_the_directory(file, refused, place):
    source = plain(place / "m", shards=2)
    plain(place / "other")
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["weight_map"]["head.weight"] = file
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    line = refused("compress", source, "--recipe", "w8")
    assert f"its weight_map names {file!r}, which is not in the directory" in line


def test_shards_in_a_folder_inside_and_links_to_a_cache(place):
    source = plain(place / "m", shards=2)
    (source / "parts").mkdir()
    (place / "blobs").mkdir()
    index = json.loads((source / "model.safetensors.index.json").read_text())
    for file in set(index["weight_map"].values()):
        (source / file).rename(place / "blobs" / file)
        (source / "parts" / file).symlink_to(place / "blobs" / file)
    index["weight_map"] = {name: f"parts/{file}" for name, file in index["weight_map"].items()}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    compressed(source, place / "out")
    made = json.loads((place / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert all(
        (place / "out" / file).is_file() and not (place / "out" / file).is_symlink() for file in made.values()
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight_map": None}, "has no weight_map"),
        ({"weight_map": {}}, "has no weight_map"),
        ({"weight_map": {"a": "b.bin"}}, "names 'b.bin', which is no .safetensors file"),
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, "1 tensors are not in the shards"),
    ],
)
def test_an_index_that_is_wrong(changes, said, refused, place):
    edit(plain(place / "m", shards=2) / "model.safetensors.index.json", **changes)
    assert said in refused("compress", place / "m", "--recipe", "w8")


def test_a_tensor_in_two_shards(refused, place):
    source = plain(place / "m", shards=2)
    first, second = sorted(source.glob("*.safetensors"))
    save_file(read_all(source), first, {"format": "pt"})
    line = refused("compress", source, "--recipe", "w8")
    assert f"is in {first.name} and in {second.name}" in line


def test_more_in_a_shard_than_in_the_index_is_kept(tmp_path):
    source = plain(tmp_path / "m", shards=2)
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["head.weight"]
    path.write_text(json.dumps(index))
    result = compressed(source, tmp_path / "out")
    assert (
        "not in model.safetensors.index.json, but in its shards, and kept: head.weight" in result.report.notes
    )
    assert "head.weight_packed" in read_all(tmp_path / "out")


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"text_config": {"quantization_config": {"quant_method": "gptq"}}},
        {"compression_config": {"quant_method": "gptq"}},
    ],
)
def test_a_checkpoint_that_is_quantized_already(config, refused, place):
    line = refused("compress", plain(place / "m", **config), "--recipe", "w8")
    assert "is quantized already (gptq); give the float checkpoint" in line


def test_a_result_is_not_compressed_again(refused, place):
    compressed(plain(place / "m"), place / "out")
    assert "is quantized already (compressed-tensors)" in refused("compress", "out", "--recipe", "w8")


def test_an_unknown_dtype(refused, place):
    source = plain(place / "m")
    data = (source / "model.safetensors").read_bytes().replace(b'"BF16"', b'"BF61"', 1)
    (source / "model.safetensors").write_bytes(data)
    assert "has the dtype 'BF61'; known are F64" in refused("compress", source, "--recipe", "w8")


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(wrong, refused, place):
    tensors = plain_tensors()
    tensors["head.weight"][3, 4] = wrong
    line = refused("compress", plain(place / "m", tensors), "--recipe", "w8")
    assert "model.safetensors" in line and "'head.weight'" in line


def test_weights_too_large_for_fp16(refused, place):
    tensors = plain_tensors(torch.float32)
    tensors["head.weight"][3, 4] = 7e4
    line = refused("compress", plain(place / "m", tensors), "--recipe", "fp16")
    assert (
        "'head.weight' has values up to 7e+04, which torch.float16 does not hold; take the recipe bf16"
        in line
    )


def test_missing_and_differing_weights(refused, place):
    saved("llama", place / "m", without="model.norm.weight")
    assert "tensors of LlamaForCausalLM are missing: model.norm.weight" in refused(
        "compress", "m", "--recipe", "w8"
    )
    saved("llama", place / "n")
    edit(place / "n" / "config.json", intermediate_size=64)
    assert "have another shape than in LlamaForCausalLM" in refused("compress", "n", "--recipe", "w8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            (),
            "name a recipe: --recipe fp16, bf16, w8, w4_g32, w4_g128, w4_g64_hqq, w4, w3, w2, w4_codebook, fp8",
        ),
        (("--recipe", "original"), "name a recipe"),
        (("--recipe", "w8a8"), "is about activations too"),
        (("--recipe", "w8a8_dynamic"), "is about activations too"),
        (("--recipe", "w4_g128_awq"), "is about activations too"),
        (("--recipe", "w9"), "recipe 'w9': known are"),
        (("--recipe", "bf16"), "changes none of its tensors (they have as few bits already)"),
        (("--recipe", "w4_g128"), "the group size does not divide"),
        (
            ("--recipe", "w8", "--exclude", "haed"),
            "the rule 'haed' matches no layer and no operator; near names: head",
        ),
        (("--recipe", "w8", "--exclude", "*"), "changes none of its tensors (the recipe keeps it in float)"),
        (("--recipe", "w8", "--data", "d.npz"), "written without being run, so data says nothing here"),
        (("--recipe", "w8", "--eval", "d.npz"), "so eval says nothing here"),
        (("--recipe", "w8", "--arch", "a:b"), "so arch says nothing here"),
        (("--recipe", "w8", "--format", "tflite"), "so format says nothing here"),
        (("--recipe", "w8", "--state", "b=a"), "so state says nothing here"),
        (("--recipe", "w8", "--batch-axis", "x=1"), "so batch_axis says nothing here"),
        (("--recipe", "w8", "--engine", "openvino"), "so engine says nothing here"),
        (("--recipe", "w8", "--max-drop", "2%"), "so max_drop says nothing here"),
        (("--recipe", "w8", "--min-speedup", "2"), "so min_speedup says nothing here"),
        (("--recipe", "w8", "--prefer", "size"), "so prefer says nothing here"),
        (("--recipe", "w8", "--metric", "mse"), "so metric says nothing here"),
        (("--recipe", "w8", "--batch", "1,8"), "so batch says nothing here"),
        (("--recipe", "w8", "--time-budget", "10m"), "so time_budget says nothing here"),
        (("--recipe", "w8", "--out", "m"), "lies in the directory that is compressed"),
        (("--recipe", "w8", "--out", "m/sub"), "lies in the directory that is compressed"),
    ],
)
def test_arguments_that_are_wrong(arguments, said, refused, place):
    plain(place / "m")
    assert said in refused("compress", "m", *arguments)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        (
            'engine = "openvino"\n' + RULE.format(match="*", qtype="int8"),
            "is for files of the engine 'openvino'",
        ),
        (RULE.format(match="nowhere", qtype="int8"), "the rule 'nowhere' matches no layer"),
        ("smooth = true\n" + RULE.format(match="*", qtype="int8"), "is about activations too"),
        (
            "equalize = true\n" + RULE.format(match="*", qtype="int8"),
            "a directory has no graph; leave it out",
        ),
    ],
)
def test_recipes_that_do_not_fit(toml, said, refused, place):
    plain(place / "m")
    (place / "own.toml").write_text(toml)
    assert said in refused("compress", "m", "--recipe", "own.toml")


def test_recipes_for_directories_are_refused_for_files(refused, place):
    from tests.tiny import linear

    linear().save(place / "model.onnx")
    line = refused("compress", "model.onnx", "--recipe", "fp8")
    assert "gets fp8_e4m3fn weights" in line and "for Hugging Face directories" in line


def test_a_full_disk_is_told_before_it_is_full(refused, place, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    line = refused("compress", plain(place / "m"), "--recipe", "w8")
    assert "GB are needed and 0.00 GB are free" in line


def test_a_disk_that_fails(refused, place, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_bytes", fails)
    assert "cannot be written (No space left on device)" in refused(
        "compress", plain(place / "m"), "--recipe", "w8"
    )


@pytest.mark.parametrize("recipe", ["w8", "w4_g32", "fp8", "bf16"])
def test_what_is_written_wrong_is_not_handed_over(recipe, tmp_path, monkeypatch):
    """One bit of any tensor's first bytes turned on the way to the disk is seen, and nothing is left."""
    source = plain(tmp_path / "m", plain_tensors(torch.float32 if recipe == "bf16" else torch.bfloat16))
    put = writing.write_bytes
    calls, wrong = [], []

    def flawed(path, start, values):
        calls.append(start)
        if len(calls) in wrong:
            values = values.clone()
            values.reshape(-1).view(torch.uint8)[0] ^= 1
        put(path, start, values)

    monkeypatch.setattr(writing, "write_bytes", flawed)
    compressed(source, tmp_path / "right", recipe, threads=1)
    for number in range(1, len(calls) + 1):
        calls.clear()
        wrong[:] = [number]
        with pytest.raises(VerificationError, match=r"was read back from .* other than it was written"):
            compressed(source, tmp_path / "out", recipe, threads=1)
        assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"m", "right"}


def test_an_interrupted_run_leaves_what_was_there(tmp_path):
    source = plain(tmp_path / "m")
    compressed(source, tmp_path / "out")
    before = contents(tmp_path / "out")

    def stop(stage, done, total):
        if stage.startswith("write"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compressed(source, tmp_path / "out", "fp8", progress=stop)
    assert contents(tmp_path / "out") == before
    assert {path.name for path in tmp_path.iterdir()} == {"m", "out"}


def test_without_transformers_names_tell(tmp_path, monkeypatch):
    source, _ = saved("llama", tmp_path / "m")
    monkeypatch.setitem(importlib.import_module("sys").modules, "transformers", None)
    result = compressed(source, tmp_path / "out", "w8")
    assert any("transformers is not installed (pip install" in note for note in result.report.notes)
    assert len(result.report.layers) == 15
    with pytest.raises(InputError, match=r'needs transformers; run: pip install "fewbits\[transformers\]"'):
        fb.load(tmp_path / "out")


def test_presets_that_directories_take_are_listed(command):
    listed = command("recipes").out
    for name in (*PRESETS, *STORED):
        assert f"\n{name} " in listed
