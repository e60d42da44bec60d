"""Files of several signatures: data by signature, shared weights rounded once, and every signature held to its own."""

import copy

import numpy as np
import pytest

import fewbits as fb
from fewbits.errors import InputError
from fewbits.models.model import open_model
from fewbits.models.tflite.load import parse
from fewbits.models.tflite.types import FLOAT32, INT8
from fewbits.samples import open_samples
from fewbits.signatures import split
from tests.lite import mnist
from tests.stages import sqnr_db


def with_two_signatures(path):
    """The net as 'classify', and as 'embed' what its convolution gives, from the same constants; 'embed' is first."""
    net = mnist()
    net.model.signatureDefs[0].signatureKey = b"classify"
    embed = copy.deepcopy(net.graph)
    embed.operators, (made,) = embed.operators[:1], embed.operators[0].outputs
    embed.tensors, embed.outputs = embed.tensors[: made + 1], [made]
    net.model.subgraphs.append(embed)
    signature = copy.deepcopy(net.model.signatureDefs[0])
    signature.signatureKey, signature.subgraphIndex = b"embed", 1
    signature.outputs[0].tensorIndex, signature.outputs[0].name = made, b"features"
    net.model.signatureDefs.insert(0, signature)
    return net.save(path)


@pytest.fixture
def two(tmp_path):
    return with_two_signatures(tmp_path / "two.tflite")


def images(count=48, size=1.0):
    return size * np.random.default_rng(5).standard_normal((count, 8, 8, 1)).astype(np.float32)


DATA = {"classify": {"image": images()}, "embed": {"image": images(32, 3.0)}}


def runs(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    assert set(interpreter.get_signature_list()) == {"classify", "embed"}
    return {name: interpreter.get_signature_runner(name) for name in ("classify", "embed")}


def compressed(path, data, folder, recipe="w8a8", **arguments):
    return fb.compress(
        path, data, recipe=recipe, prefer="size", max_drop="100%", out=folder, threads=1, **arguments
    )


def test_each_signature_is_rounded_by_its_own_data_and_weights_are_stored_once(
    two, tmp_path, short_measuring
):
    result = compressed(two, DATA, tmp_path / "o")
    path = tmp_path / "o" / "two.tflite"
    before, after = runs(two), runs(path)
    for name, data in DATA.items():
        expected, got = (one[name](**data) for one in (before, after))
        assert sqnr_db(expected, got) > 25, name
    model = parse(path.read_bytes(), path)
    main, other = model.subgraphs
    for graph in (main, other):
        floats = {index for index, tensor in enumerate(graph.tensors) if tensor.type == FLOAT32}
        assert floats == {*graph.inputs, *graph.outputs}
    scales = [graph.tensors[graph.operators[0].outputs[0]].quantization.scale[0] for graph in (main, other)]
    assert 2 < scales[1] / scales[0] < 4, "inputs three times as large have steps three times as large"
    kernels = [
        tensor
        for graph in (main, other)
        for tensor in graph.tensors
        if tensor.type == INT8 and list(tensor.shape) == [12, 3, 3, 1]
    ]
    assert len(kernels) == 2 and kernels[0].buffer == kernels[1].buffer
    assert list(kernels[0].quantization.scale) == list(kernels[1].quantization.scale)
    (found,) = result.report.signatures
    assert (found.name, found.rounded, found.metric.name) == ("embed", True, "cosine")
    assert found.agreement.sqnr_db > 25 and found.speedup > 0 and found.latency_ms.p50 > 0
    assert [layer.op for layer in found.layers] == ["CONV_2D"]
    assert "signature 'embed': cosine" in str(result)
    page = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert "signature &#39;embed&#39;: cosine" in page
    assert result.report.shown.size_bytes == path.stat().st_size


def seen(data, inputs):
    return np.concatenate([feeds["image"] for feeds, _ in open_samples(data, inputs).batches(8)])


def test_a_mapping_a_tagged_stream_and_an_archive_say_the_same(two, tmp_path):
    def stream():
        for name, data in DATA.items():
            for image in data["image"]:
                yield name, {"image": image[None]}

    np.savez(tmp_path / "data.npz", **{f"{name}/image": data["image"] for name, data in DATA.items()})
    info = open_model(two).info
    assert info.signatures == ("classify", "embed")
    generators = {name: (lambda one=one: ([x[None]] for x in one["image"])) for name, one in DATA.items()}
    for data in (DATA, stream, list(stream()), generators, tmp_path / "data.npz"):
        given = split(info, data, None)
        assert list(given) == ["classify", "embed"]
        for name, one in given.items():
            assert np.array_equal(seen(one.data, info.inputs), DATA[name]["image"]), name
    assert split(info, images(), None) == split(info, {"image": images()}, None) == {}


def test_a_command_takes_an_archive_by_signature_and_its_recipe_makes_the_same_file(
    command, place, tmp_path, short_measuring
):
    path = with_two_signatures(place / "two.tflite")
    np.savez(place / "data.npz", **{f"{name}/image": data["image"] for name, data in DATA.items()})
    arguments = ("--recipe", "w8a8", "--max-drop", "100%", "--prefer", "size", "--out", "o", "--threads", "1")
    answer = command("compress", path, "--data", "data.npz", *arguments)
    assert answer.code == 0, answer.err
    assert "signature 'embed': cosine" in answer.err + answer.out
    again = compressed(path, DATA, tmp_path / "again", str(place / "o" / "recipe.toml"))
    assert (again.folder / "two.tflite").read_bytes() == (place / "o" / "two.tflite").read_bytes()


def test_a_signature_without_data_stays_as_it_came_and_is_named(two, tmp_path, short_measuring):
    made = [
        compressed(two, data, tmp_path / name)
        for name, data in (("a", images()), ("b", {"classify": images()}))
    ]
    for result in made:
        (note,) = (one for one in result.report.notes if "signature" in one)
        assert "the choice are of 'classify'" in note
        assert "signature 'embed': as it came, since no data was given for it" in str(result)
        (found,) = result.report.signatures
        assert (found.name, found.rounded, found.metric) == ("embed", False, None)
        before, after = runs(two), runs(result.folder / "two.tflite")
        one = images(1)
        assert np.array_equal(before["embed"](image=one)["features"], after["embed"](image=one)["features"])
        assert np.array_equal(result.model(one), after["classify"](image=one)["logits"])


def test_every_form_is_tried_and_a_signature_that_loses_too_much_fails_the_file(
    two, tmp_path, short_measuring
):
    result = fb.compress(two, DATA, max_drop="0.0001%", prefer="size", out=tmp_path / "o", threads=1)
    failed = {one.recipe: one.failed for one in result.report.candidates}
    assert set(failed) == {"original", "fp16", "w8", "w4", "w8a8_dynamic", "w8a16", "w8a8"}
    assert any("signature 'embed': drop" in why for why in failed["w4"])
    assert result.met and not failed[result.report.shown.recipe]


def test_labels_and_samples_to_score_with_are_by_signature_too(two, tmp_path, short_measuring):
    labels = np.arange(16) % 10
    scored = {"classify": {"image": images(16), "labels": labels}, "embed": images(16, 3.0)}
    report = compressed(two, DATA, tmp_path / "o", eval=scored).report
    assert report.metric.name == "top1" and report.signatures[0].metric.samples == 16


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"embed": {"image": images()}}, "not for 'classify', the main signature"),
        (
            {"classify": {"image": images()}, "sort": {"image": images()}},
            "for a signature 'sort'; the file's are",
        ),
        (
            [("classify", {"image": images(1)}), ("sort", {})],
            "for a signature 'sort'; the file's are 'classify', 'embed'",
        ),
        ({"classify": images(), "embed": {"pixels": images()}}, "data for 'embed': has arrays ['pixels']"),
        (
            {"classify": images(), "embed": images(8)[:, :7]},
            "data for 'embed': array 'image' has shape [8, 7, 8, 1]",
        ),
        ({"classify": images(), "embed": images(8) * np.nan}, "NaN or Inf in 'image'"),
        ({"classify": images(), "embed": lambda: iter(())}, "data for 'embed': no samples"),
    ],
)
def test_what_is_wrong_with_data_by_signature_is_one_line(two, tmp_path, data, words):
    with pytest.raises(InputError) as caught:
        compressed(two, data, tmp_path / "o")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_arrays_without_a_signature_beside_others_are_named(two, tmp_path):
    np.savez(tmp_path / "data.npz", **{"classify/image": images(), "image": images()})
    with pytest.raises(InputError, match="array 'image' names no signature, and others do"):
        compressed(two, tmp_path / "data.npz", tmp_path / "o")
