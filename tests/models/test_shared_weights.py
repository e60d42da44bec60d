"""One constant that several layers read, in several formats at once."""

import itertools

import pytest

from tests.stages import sqnr_db, write_files
from tests.tiny import Tiny

BOTH = Tiny(
    """g (int64[N, 6] ids) => (float[N, 6, 64] y) {
        e = Gather (table, ids)
        y = MatMul (e, table)
    }""",
    {"table": (64, 64)},
    {"ids": ((6,), 64)},
)
FORMATS = {
    "int8 per channel": ('weights = {qtype = "int8", per = "channel"}', 38),
    "int8 per tensor": ('weights = {qtype = "int8"}', 36),
    "int4": ('weights = {qtype = "int4", per = "group", group_size = 32}', 17),
    "fp16": ('weights = {qtype = "fp16"}', 60),
    "bf16": ('weights = {qtype = "bf16"}', 48),
    "float": ("", 100),
}
GATHERED = ("int8 per channel", "fp16", "bf16", "float")  # rows are gathered as codes with a scale each
PAIRS = [pair for pair in itertools.product(GATHERED, FORMATS) if pair != ("float", "float")]


@pytest.mark.parametrize(("gathered", "multiplied"), PAIRS)
def test_a_table_that_is_looked_up_and_multiplied_with(tmp_path, gathered, multiplied):
    """Each reader has its own constants where the formats differ, and both have the same ones where they do not."""
    recipe = tmp_path / "mine.toml"
    rules = (("Gather", FORMATS[gathered][0]), ("MatMul", FORMATS[multiplied][0]))
    recipe.write_text(
        'name = "mine"\n' + "".join(f'[[rules]]\nmatch = "{op}"\n{schemes}\n' for op, schemes in rules)
    )
    model = BOTH.save(tmp_path / "model.onnx")
    feeds = BOTH.samples(16)
    files = write_files(model, feeds, str(recipe), tmp_path)
    expected = files.float_outputs(feeds)
    checker = files.checker(feeds)
    least = min(FORMATS[gathered][1], FORMATS[multiplied][1])
    assert {one.settings.engine for one in files.candidates} == {"onnxruntime", "openvino"}
    for one in files.candidates:
        assert sqnr_db(expected, files.session(one).run(feeds)) > least - 3
        assert checker.difference(one) is None
        planned = [layer.weights[0].scheme for layer in one.file.plan.layers if layer.weights]
        assert len(planned) == 2 - (gathered, multiplied).count("float")
    floats = files.written[0].bytes_by_dtype.get("float", 0)
    assert (floats >= 64 * 64 * 4) == ("float" in (gathered, multiplied))
    if gathered == multiplied:  # one table, not two
        assert all(one.path.stat().st_size < 0.65 * model.stat().st_size for one in files.written)
