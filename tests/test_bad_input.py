"""What the user gave is wrong: exit code 2, one clear line on standard error, nothing written, no traceback."""

import os
import pickle
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.conftest import contents, one_line
from tests.tiny import CONV_BN, EMBEDDING, MODELS, Tiny, linear

PRESET_NEAR = (
    'name = "mine"\n[[rules]]\nmatch = "{match}"\nweights = {{qtype = "{qtype}", per = "channel"}}\n'
)
GROUPED = (
    'name = "x"\n[[rules]]\nmatch = "*"\nweights = {{qtype = "int4", per = "group", group_size = {size}}}\n'
)


@pytest.fixture
def model(place):
    return linear().save(place / "model.onnx")


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


# --- data -------------------------------------------------------------------------------------------------------


def test_no_data_where_the_recipe_needs_it(refused, model):
    line = refused("compress", model, "--recipe", "w8a8")
    assert "'w8a8' needs calibration data" in line
    assert "--data" in line


def test_missing_data_file(refused, model, place):
    line = refused("compress", model, "--data", place / "none.npz")
    assert "none.npz: no such file" in line


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_samples(refused, model, place, count):
    data = npz(place / "d.npz", x=np.zeros((count, 64), np.float32))
    line = refused("compress", model, "--data", data, "--recipe", "w8a8")
    assert "d.npz" in line
    assert "sample" in line


def test_empty_archive(refused, model, place):
    assert "no samples" in refused("compress", model, "--data", npz(place / "d.npz"))


def test_data_that_is_no_archive(refused, model, place):
    data = place / "d.npz"
    data.write_bytes(b"hello")
    assert "not an .npz file" in refused("compress", model, "--data", data)


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.95])
def test_truncated_archive(refused, model, place, cut):
    data = npz(place / "d.npz", x=np.zeros((64, 64), np.float32))
    data.write_bytes(data.read_bytes()[: int(cut * data.stat().st_size)])
    assert "d.npz" in refused("compress", model, "--data", data)


@pytest.mark.parametrize("at", [0.0, 0.2, 0.5, 0.8])
def test_damaged_deflated_archive(refused, model, place, at):
    data = place / "d.npz"
    np.savez_compressed(data, x=np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32))
    damaged = bytearray(data.read_bytes())
    start = int(at * len(damaged))
    damaged[start : start + 40] = bytes(b ^ 0x5A for b in damaged[start : start + 40])
    data.write_bytes(damaged)
    line = refused("compress", model, "--data", data, "--recipe", "w8a8")
    assert "d.npz" in line


def test_archive_of_python_objects(refused, model, place):
    data = npz(place / "d.npz", x=np.array([{}, {}], dtype=object))
    assert "Python objects" in refused("compress", model, "--data", data)


def test_wrong_input_names(refused, place):
    model = MODELS["several"].save(place / "model.onnx")
    data = npz(place / "d.npz", x=np.zeros((8, 32), np.float32), rows=np.zeros(8, np.int64))
    line = refused("compress", model, "--data", data)
    assert "['rows', 'x']" in line
    assert "x float32[N, 32]" in line
    assert "row int64[N]" in line


@pytest.mark.parametrize("shape", [(8, 63), (8, 64, 1), (8,), ()])
def test_wrong_shape(refused, model, place, shape):
    line = refused("compress", model, "--data", npz(place / "d.npz", x=np.zeros(shape, np.float32)))
    assert "x float32[N, 64]" in line or "no sample axis" in line


def test_inputs_with_different_numbers_of_samples(refused, place):
    model = MODELS["several"].save(place / "model.onnx")
    data = npz(place / "d.npz", x=np.zeros((8, 32), np.float32), row=np.zeros(7, np.int64))
    line = refused("compress", model, "--data", data)
    assert "8" in line
    assert "7" in line


def test_integers_where_floats_are_expected_are_taken(place):
    """A smaller integer type of the same kind is converted; only what would change values is refused."""
    from fewbits.models.model import open_model
    from fewbits.samples import open_samples

    inputs = open_model(EMBEDDING.save(place / "model.onnx")).info.inputs
    feeds = open_samples({"ids": np.zeros((4, 8), np.int32)}, inputs).first()
    assert feeds["ids"].dtype == np.int64


@pytest.mark.parametrize("dtype", [np.complex64, "U3", np.float64])
def test_wrong_dtype_for_integers(refused, place, dtype):
    model = EMBEDDING.save(place / "model.onnx")
    data = npz(place / "d.npz", ids=np.zeros((8, 8), np.float32).astype(dtype))
    line = refused("compress", model, "--data", data)
    assert "ids int64[N, 8]" in line


def test_floats_where_integers_are_expected(refused, place):
    model = EMBEDDING.save(place / "model.onnx")
    line = refused("compress", model, "--data", npz(place / "d.npz", ids=np.zeros((8, 8), np.float32)))
    assert "'ids' is float32" in line
    assert "ids int64[N, 8]" in line


def test_pixels_where_floats_are_expected(refused, place):
    model = CONV_BN.save(place / "model.onnx")
    line = refused("compress", model, "--data", npz(place / "d.npz", image=np.zeros((8, 3, 8, 8), np.uint8)))
    assert "'image' is uint8" in line
    assert "image float32[N, 3, 8, 8]" in line


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("option", ["--data", "--eval"])
def test_nan_in_data_names_the_sample(refused, model, place, bad, option):
    x = np.zeros((40, 64), np.float32)
    x[29, 5] = bad
    line = refused("compress", model, option, npz(place / "d.npz", x=x), "--recipe", "w8")
    assert "sample 29 has NaN or Inf in 'x'" in line
    assert "d.npz" in line


def test_row_beyond_the_table(refused, place):
    model = EMBEDDING.save(place / "model.onnx")
    data = npz(place / "d.npz", ids=np.full((8, 8), 1000))
    refused("compress", model, "--data", data, "--recipe", "w8a8")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(16), "classes 0 to 9"),
        (np.full(16, -1), "classes 0 to 9"),
        (np.zeros(16, np.float32), "label"),
        (np.zeros((16, 1), np.int64), "label"),
        (np.zeros(15, np.int64), "15"),
    ],
)
def test_labels_that_are_no_classes(refused, model, place, labels, said):
    data = npz(place / "d.npz", x=np.zeros((16, 64), np.float32), labels=labels)
    assert said in refused("compress", model, "--eval", data, "--recipe", "w8")


def test_labels_for_a_model_without_classes(refused, place):
    model = MODELS["conv1d"].save(place / "model.onnx")
    data = npz(place / "d.npz", x=np.zeros((16, 4, 32), np.float32), labels=np.zeros(16, np.int64))
    assert "[samples, classes]" in refused("compress", model, "--eval", data, "--recipe", "w8")


# --- the model --------------------------------------------------------------------------------------------------


def test_missing_model(refused, place):
    line = refused("compress", place / "none.onnx")
    assert "none.onnx: no such file" in line


@pytest.mark.parametrize("command_name", ["compress", "inspect"])
@pytest.mark.parametrize("cut", [0, 1, 60, 0.5, 0.99])
def test_truncated_model(refused, place, model, command_name, cut):
    whole = model.read_bytes()
    model.write_bytes(whole[: cut if isinstance(cut, int) else int(cut * len(whole))])
    assert "model.onnx" in refused(command_name, model)


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes(refused, place, seed):
    model = place / "model.onnx"
    model.write_bytes(np.random.default_rng(seed).bytes(2000))
    line = refused("compress", model)
    assert "model.onnx" in line
    assert "not a readable ONNX model" in line or "pickle" in line


def test_another_kind_of_file(refused, place):
    model = place / "model.bin"
    model.write_bytes(b"weights")
    assert "not an .onnx file" in refused("compress", model)


def test_folder_instead_of_a_model(refused, place):
    assert "a folder without config.json; give a Hugging Face directory" in refused("compress", place)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_in_a_weight_names_tensor_and_index(refused, place, bad):
    proto = linear().proto()
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[3, 7] = weight[9, 1] = bad
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w1"))
    onnx.save(proto, place / "model.onnx")
    line = refused("compress", place / "model.onnx", "--recipe", "w8")
    assert "'w1'" in line
    assert "[3, 7]" in line
    assert "2 such values" in line


@pytest.mark.parametrize("name", ["variance", "gain", "b2"])
def test_nan_in_what_is_folded_away(refused, place, name):
    proto = CONV_BN.proto()
    tensor = next(one for one in proto.graph.initializer if one.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[5] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(proto, place / "model.onnx")
    line = refused("compress", place / "model.onnx", "--recipe", "w8")
    assert f"'{name}'" in line
    assert "[5]" in line


def test_nothing_to_quantize(refused, place):
    model = Tiny("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }", {}, {}).save(place / "model.onnx")
    assert "nothing to quantize" in refused("compress", model, "--recipe", "w8")


def test_nothing_to_quantize_with_auto(refused, place):
    model = Tiny("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }", {}, {}).save(place / "model.onnx")
    assert "nothing to quantize" in refused("compress", model)


def test_missing_external_data(refused, place):
    onnx.save(
        linear().proto(), place / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    (place / "w.bin").write_bytes((place / "w.bin").read_bytes()[:100])
    assert "'w.bin'" in refused("compress", place / "model.onnx")
    (place / "w.bin").unlink()
    assert "'w.bin'" in refused("compress", place / "model.onnx")


def test_operator_that_no_engine_knows(refused, place):
    proto = linear().proto()
    proto.opset_import.append(onnx.helper.make_opsetid("no.such.domain", 1))
    proto.graph.node[1].domain = "no.such.domain"
    onnx.save(proto, place / "model.onnx")
    assert "no engine can run the original" in refused("compress", place / "model.onnx", "--recipe", "w8")


class Loud:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("unpickled",))


@pytest.mark.parametrize("name", ["model.th", "model.onnx", "model.pt"])
@pytest.mark.parametrize("command_name", ["compress", "inspect"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_pickle_is_refused_unread(refused, place, name, command_name, protocol):
    (place / name).write_bytes(pickle.dumps(Loud(), protocol=protocol))
    line = refused(command_name, place / name)
    assert "pickle" in line
    assert "weights_only=True" in line


@pytest.mark.parametrize("legacy", [True, False])
def test_torch_checkpoint_is_refused(refused, place, legacy):
    import torch

    torch.save({"w": torch.zeros(3)}, place / "model.pth", _use_new_zipfile_serialization=not legacy)
    line = refused("compress", place / "model.pth")
    assert "pickle" in line
    assert ".safetensors" in line


def test_real_checkpoint_is_refused(refused, shared_data):
    path = shared_data / "resnet20_cifar10_legacy_pickle.th"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    assert "pickle" in refused("compress", path)


# --- the recipe -------------------------------------------------------------------------------------------------


def test_unknown_preset_lists_the_presets(refused, model):
    line = refused("compress", model, "--recipe", "w7")
    assert "'w7'" in line
    assert "w8a8_dynamic" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            PRESET_NEAR.format(match="*", qtype="int7"),
            "'int7'; allowed here: int8, int4, int3, int2, ternary, binary, codebook4, fp16, bf16",
        ),
        (PRESET_NEAR.format(match="MatMull", qtype="int8"), "near names: MatMul"),
        (PRESET_NEAR.format(match="*", qtype="int8") + "colour = 3\n", "colour"),
        ('colour = "red"\n' + PRESET_NEAR.format(match="*", qtype="int8"), "colour"),
        ('name = "x"\nrules = []\n', "rules"),
        ('name = "x"\n', "rules"),
        ('name = "x\n', "not valid TOML"),
        ('name = "x"\n[[rules]]\nmatch = "*"\nweights = {qtype = "int8", per = "row"}\n', "per"),
        ('name = "x"\n[[rules]]\nmatch = "*"\nweights = {qtype = "int4", per = "group"}\n', "group size"),
        (GROUPED.format(size=-4), "group_size"),
        (GROUPED.format(size=48), "does not divide"),
        ('name = "x"\n[[rules]]\nmatch = "*"\n', "keeps every layer in float"),
        (
            'name = "x"\n[[rules]]\nmatch = "*"\nactivations = {qtype = "int8"}\n',
            "'int8'; allowed here: uint8, uint4",
        ),
        ('name = "x"\nengine = "tensorrt"\n' + PRESET_NEAR.format(match="*", qtype="int8")[14:], "tensorrt"),
        ('name = "x"\nprecision = "f8"\n' + PRESET_NEAR.format(match="*", qtype="int8")[14:], "f8"),
        ('name = "x"\nplacement = "here"\n' + PRESET_NEAR.format(match="*", qtype="int8")[14:], "here"),
    ],
)
def test_bad_recipe_file(refused, model, place, text, said):
    recipe = place / "mine.toml"
    recipe.write_text(text)
    line = refused("compress", model, "--recipe", recipe)
    assert said in line


@pytest.mark.parametrize(
    "rule",
    [
        'activations = {qtype = "uint8"}',  # activations without weights
        'weights = {qtype = "fp16"}\nactivations = {qtype = "uint8"}',
        'weights = {qtype = "int4", per = "group", group_size = 32}\nactivations = {qtype = "uint8"}',
        'weights = {qtype = "int8", per = "tensor", symmetric = false}\nactivations = {qtype = "uint8"}',
        'weights = {qtype = "int8", dynamic = true}',
        'weights = {qtype = "int8", per = "group", group_size = 32}',
        'weights = {qtype = "int8"}\nactivations = {qtype = "uint8", per = "channel"}',
        'weights = {qtype = "fp16"}\nactivations = {qtype = "uint8", dynamic = true}',
        'weights = {qtype = "int4", per = "channel"}\nactivations = {qtype = "uint8", dynamic = true}',
        'weights = {qtype = "int8"}\nactivations = {qtype = "uint8", dynamic = true}',
        'weights = {qtype = "int8", symmetric = false}',
        'weights = {qtype = "int4", symmetric = false, per = "channel"}',
        'weights = {qtype = "int4", symmetric = false, per = "group", group_size = 16}',
    ],
)
@pytest.mark.parametrize("switches", ["", "smooth = true\ncompensate = true\n"])
def test_unusual_recipe_runs_or_is_refused(command, short_measuring, model, place, rule, switches):
    """No combination of known words ends in a traceback."""
    recipe = place / "mine.toml"
    recipe.write_text(f'name = "mine"\n{switches}[[rules]]\nmatch = "*"\n{rule}\n')
    data = npz(place / "d.npz", x=np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32))
    answer = command(
        "compress", model, "--recipe", recipe, "--data", data, "--threads", 1, "--engine", "onnxruntime"
    )
    assert answer.code in (0, 2, 3), answer.err
    if answer.code == 2:
        line = one_line(answer.err)
        assert "mine" in line or "'w1'" in line


def test_missing_recipe_file(refused, model):
    assert "none.toml" in refused("compress", model, "--recipe", "none.toml")


def test_excluding_what_is_not_there(refused, model):
    line = refused("compress", model, "--recipe", "w8", "--exclude", "Conv1")
    assert "'Conv1'" in line
    assert "near names" in line


def test_excluding_what_is_not_there_with_auto(refused, model):
    line = refused("compress", model, "--exclude", "Conv1")
    assert "'Conv1'" in line
    assert "near names" in line


def test_excluding_everything(refused, model):
    assert "every layer in float" in refused("compress", model, "--recipe", "w8", "--exclude", "*")


# --- other arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--max-drop", "lots", "max_drop"),
        ("--max-drop", "-1%", "max_drop"),
        ("--max-drop", "nan", "max_drop"),
        ("--max-drop", "inf", "max_drop"),
        ("--max-size", "big", "max_size"),
        ("--max-size", "20XB", "max_size"),
        ("--max-size", "-3MB", "max_size"),
        ("--max-size", "1.2.3MB", "max_size"),
        ("--prefer", "beauty", "speed, size, quality"),
        ("--engine", "tensorrt", "onnxruntime, openvino"),
        ("--threads", "0", "threads"),
        ("--threads", "many", "threads"),
        ("--min-speedup", "-2", "min-speedup"),
        ("--min-speedup", "nan", "min-speedup"),
        ("--seed", "-1", "seed"),
        ("--no-such-option", "1", "--no-such-option"),
    ],
)
def test_bad_argument(refused, model, option, value, said):
    line = refused("compress", model, "--recipe", "w8", option, value)
    assert said in line


def test_no_model_named(refused):
    assert "'model'" in refused("compress")


def test_unknown_command(refused):
    assert "'squash'" in refused("squash")


# --- the output -------------------------------------------------------------------------------------------------


def test_foreign_folder_is_not_touched(refused, model, place):
    (place / "out").mkdir()
    (place / "out" / "precious.txt").write_text("mine")
    line = refused("compress", model, "--recipe", "w8", "--out", place / "out")
    assert "did not write" in line


def test_default_folder_is_not_touched_either(refused, model, place):
    (place / "model-fewbits").mkdir()
    (place / "model-fewbits" / "precious.txt").write_text("mine")
    assert "model-fewbits" in refused("compress", model, "--recipe", "w8")


def test_file_in_the_way(refused, model, place):
    (place / "out").write_text("mine")
    assert "not a folder" in refused("compress", model, "--recipe", "w8", "--out", place / "out")


def test_parent_that_is_not_there(refused, model, place):
    assert "does not exist" in refused("compress", model, "--recipe", "w8", "--out", place / "a" / "b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_parent_that_cannot_be_written(refused, model, place):
    locked = place / "locked"
    locked.mkdir(mode=0o555)
    assert "cannot be written" in refused("compress", model, "--recipe", "w8", "--out", locked / "out")


def test_parent_that_nobody_can_write(refused, model):
    """The kernel's own folder takes no files, whoever asks."""
    if not os.path.isdir("/proc/self"):
        pytest.skip("no /proc on this system")
    assert "cannot be written" in refused("compress", model, "--recipe", "w8", "--out", "/proc/out")


# --- the real command -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compress", "none.onnx"], "no such file"),
        (["compress", "model.onnx", "--recipe", "w8a8"], "needs calibration data"),
        (["compress", "random.onnx"], "not a readable ONNX model"),
        (["compress", "model.onnx", "--threads", "0"], "threads"),
        (["inspect", "none.onnx"], "no such file"),
    ],
)
def test_in_a_process_of_its_own(model, place, arguments, said):
    (place / "random.onnx").write_bytes(b"\x08\x99" * 500)
    before = contents(place)
    done = subprocess.run(
        [sys.executable, "-c", "from fewbits.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        env={**os.environ, "TMPDIR": str(place.parent / "temporary")},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in one_line(done.stderr)
    assert contents(place) == before
    assert list((place.parent / "temporary").iterdir()) == []
