"""Every row of the table of operators: as codes of 8 and 16 bits, run in LiteRT, against the plan's own arithmetic."""

from dataclasses import dataclass

import numpy as np
import pytest

from fewbits.models.tflite.load import parse
from fewbits.models.tflite.operators import OPERATORS
from fewbits.models.tflite.types import FLOAT32
from tests.lite import VALID, LiteNet
from tests.stages import sqnr_db, write_files

IMAGE = (6, 6, 4)


@dataclass(frozen=True)
class Row:
    """An operator behind a convolution that gives [n, 6, 6, 4]: its other inputs, the shape it gives, its options.

    ``positive``: it is given absolute values; ``sized``: it is given the shape;
    ``least_db``: what must be left by codes of 8 bits.
    """

    shape: tuple
    others: tuple[np.ndarray, ...] = ()
    first: int = 0
    options: dict | None = None
    positive: bool = False
    dtype: str = "float32"
    twice: bool = False
    results: int = 1
    version: int = 1
    reshaped: tuple | None = None
    sized: bool = False
    least_db: float = 25


def ints(*numbers):
    return np.array(numbers, np.int32)


POOL = {"strideW": 2, "strideH": 2, "filterWidth": 2, "filterHeight": 2, "padding": VALID}
SCALED = np.linspace(-1, 1, 4).astype(np.float32)
SAME_SHAPE = (None, *IMAGE)
ROWS = {
    "CONV_2D": Row(
        (None, 6, 6, 5), (np.ones((5, 1, 1, 4)), np.ones(5)), options={"strideW": 1, "strideH": 1}
    ),
    "DEPTHWISE_CONV_2D": Row(
        SAME_SHAPE,
        (np.ones((1, 1, 1, 4)), np.ones(4)),
        options={"strideW": 1, "strideH": 1, "depthMultiplier": 1},
    ),
    "FULLY_CONNECTED": Row((None, 5), (np.ones((5, 144)) / 12, np.ones(5))),
    "TRANSPOSE_CONV": Row(
        (1, 6, 6, 5), (ints(1, 6, 6, 5), np.ones((5, 1, 1, 4))), first=2, options={"strideW": 1, "strideH": 1}
    ),
    "BATCH_MATMUL": Row((None, 6, 6, 6), options={"adjY": True}, twice=True),
    **dict.fromkeys(
        ("ADD", "SUB", "MUL", "SQUARED_DIFFERENCE", "MAXIMUM", "MINIMUM"), Row(SAME_SHAPE, (SCALED,))
    ),
    "DIV": Row(SAME_SHAPE, (np.array([1.0, 2.0, 3.0, 4.0]),)),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"), Row((None, 4), (ints(1, 2),))),
    **dict.fromkeys(
        ("RELU", "RELU6", "RELU_N1_TO_1", "HARD_SWISH", "ELU", "GELU", "ABS", "SOFTMAX", "LOGISTIC", "TANH"),
        Row(SAME_SHAPE),
    ),
    "LEAKY_RELU": Row(SAME_SHAPE, options={"alpha": 0.1}),
    "PRELU": Row(SAME_SHAPE, (np.full((1, 1, 4), 0.3),)),
    "EXP": Row(SAME_SHAPE),
    **dict.fromkeys(("LOG", "SQRT", "RSQRT"), Row(SAME_SHAPE, positive=True, least_db=20)),
    **dict.fromkeys(
        ("EQUAL", "NOT_EQUAL", "LESS", "GREATER", "LESS_EQUAL", "GREATER_EQUAL"),
        Row(SAME_SHAPE, (SCALED,), dtype="bool"),
    ),
    **dict.fromkeys(
        ("ARG_MAX", "ARG_MIN"), Row((None, 6, 6), (ints(-1),), options={"outputType": 2}, dtype="int32")
    ),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D"), Row((None, 3, 3, 4), options=POOL)),
    "RESHAPE": Row((None, 144), (ints(-1, 144),)),
    "SQUEEZE": Row((None, 36, 4), options={"squeezeDims": [2]}, reshaped=(None, 36, 1, 4)),
    "EXPAND_DIMS": Row((None, 1, *IMAGE), (ints(1),)),
    "TRANSPOSE": Row((None, 4, 6, 6), (ints(0, 3, 1, 2),)),
    "PAD": Row((None, 8, 6, 4), (np.array([[0, 0], [1, 1], [0, 0], [0, 0]], np.int32),)),
    "PADV2": Row((None, 8, 6, 4), (np.array([[0, 0], [1, 1], [0, 0], [0, 0]], np.int32), np.array([-0.5]))),
    "MIRROR_PAD": Row((None, 8, 6, 4), (np.array([[0, 0], [1, 1], [0, 0], [0, 0]], np.int32),)),
    "SLICE": Row((None, 3, 6, 4), (ints(0, 1, 0, 0), ints(-1, 3, 6, 4))),
    "STRIDED_SLICE": Row(
        (None, 3, 6, 4),
        (ints(0, 0, 0, 0), ints(0, 6, 6, 4), ints(1, 2, 1, 1)),
        options={"endMask": 1, "beginMask": 1},
    ),
    "SPLIT": Row((None, 6, 6, 2), (ints(3),), first=1, options={"numSplits": 2}, results=2),
    "SPLIT_V": Row((None, 6, 6, 2), (ints(2, 2), ints(3)), options={"numSplits": 2}, results=2),
    "UNPACK": Row((None, 6, 4), options={"num": 6, "axis": 1}, results=6),
    "PACK": Row((None, 2, *IMAGE), options={"valuesCount": 2, "axis": 1}, twice=True),
    "CONCATENATION": Row((None, 6, 6, 8), options={"axis": 3}, twice=True),
    "GATHER": Row((None, 6, 6, 2), (ints(3, 1),), options={"axis": 3}),
    "GATHER_ND": Row((2, 6, 6, 4), (np.array([[0], [0]], np.int32),)),
    **dict.fromkeys(("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), Row((None, 9, 9, 4), (ints(9, 9),))),
    "SPACE_TO_DEPTH": Row((None, 3, 3, 16), options={"blockSize": 2}),
    "DEPTH_TO_SPACE": Row((None, 12, 12, 1), options={"blockSize": 2}),
    "TILE": Row((None, 12, 6, 4), (ints(1, 2, 1, 1),)),
    "SPACE_TO_BATCH_ND": Row((None, 3, 3, 4), (ints(2, 2), np.zeros((2, 2), np.int32))),
    "BATCH_TO_SPACE_ND": Row((1, 6, 6, 4), (ints(1, 1), np.zeros((2, 2), np.int32))),
    "BROADCAST_TO": Row((1, *IMAGE), (ints(1, *IMAGE),), version=2),
    **dict.fromkeys(
        ("SELECT", "SELECT_V2"), Row((1, *IMAGE), (np.ones((1, *IMAGE), bool),), first=1, twice=True)
    ),
    "FILL": Row(SAME_SHAPE, (np.array(0.5),), sized=True),
    "LOG_SOFTMAX": Row(SAME_SHAPE, least_db=20),
    "L2_NORMALIZATION": Row(SAME_SHAPE),
}


def net(op: str, row: Row) -> LiteNet:
    built = LiteNet(3)
    image = (None if None in row.shape else 1, *IMAGE)
    built.input("x", *image)
    built.weight("kernel", 4, 1, 1, 4)
    built.constant("bias", np.zeros(4))
    y = built.add("CONV_2D", ["x", "kernel", "bias"], "conv", *image, strideW=1, strideH=1)
    if row.positive:
        y = built.add("ABS", [y], "positive", *image)
        built.constant("one", np.array([0.5], np.float32))
        y = built.add("ADD", [y, "one"], "above zero", *image)
    if row.reshaped is not None:
        built.constant("shape", np.array([-1, *row.reshaped[1:]], np.int32))
        y = built.add("RESHAPE", [y, "shape"], "reshaped", *row.reshaped)
    if row.sized:
        y = built.add("SHAPE", [y], "sizes", 4, dtype="int32", outType=2)
    inputs = [built.constant(f"other{number}", array) for number, array in enumerate(row.others)]
    inputs.insert(row.first, y)
    if row.twice:
        built.constant("half", np.array([0.5], np.float32))
        inputs.append(built.add("MUL", [y, "half"], "halved", *image))
    names = [built.tensor(f"out{number}", row.shape, row.dtype) for number in range(row.results)]
    built.operator(op, inputs, names, row.version, **(row.options or {}))
    return built.output(*names)


def test_every_row_is_here():
    assert set(ROWS) == set(OPERATORS)


@pytest.mark.parametrize(
    ("op", "recipe"),
    [
        (op, recipe)
        for op, row in OPERATORS.items()
        for bits, recipe in ((8, "w8a8_minmax"), (16, "w8a16"))
        if bits in row.bits
    ],
)
def test_runs_on_codes_and_computes_what_the_plan_says(op, recipe, tmp_path):
    row = ROWS[op]
    built = net(op, row)
    fixed = None not in row.shape
    feeds = {"x": np.random.default_rng(0).standard_normal((16, *IMAGE)).astype(np.float32)}
    files = write_files(built.save(tmp_path / "net.tflite"), feeds, recipe, tmp_path)
    # Of the operators here only this one is a layer whose inputs compensation would need, and does not keep.
    alone = "weights do not make up for each other's errors where inputs of such a TRANSPOSE_CONV are not kept: out0"
    assert files.run.notes == ([alone] if op == "TRANSPOSE_CONV" else [])
    (one,) = files.candidates
    part = {"x": feeds["x"][:1]} if fixed else feeds
    expected, got = files.float_outputs(part), files.session(one).run(part)
    if row.dtype == "float32":
        assert sqnr_db(expected, got) >= row.least_db
    else:
        assert np.mean([np.mean(a == b) for a, b in zip(expected.values(), got.values(), strict=True)]) > 0.85
    assert files.checker(part).difference(one) is None
    model = parse(one.file.path.read_bytes(), tmp_path)
    graph = model.subgraphs[0]
    ends = {*graph.inputs, *graph.outputs}
    assert {i for i, tensor in enumerate(graph.tensors) if tensor.type == FLOAT32} <= ends
