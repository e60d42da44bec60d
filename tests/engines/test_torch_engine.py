"""PyTorch as what runs the original: exported programs, in float32 and in bf16."""

import numpy as np
import pytest
import torch

from fewbits.engines.cpu import Cpu
from fewbits.engines.engine import EngineSettings, available, get
from fewbits.errors import EngineError, InputError

AVX2_ONLY = Cpu("Pretended AVX2", 2, 4, ("avx2", "fma"))
SAPPHIRE = Cpu("Pretended AMX", 2, 4, ("avx2", "avx512", "vnni", "avx512_bf16", "amx_bf16"))
ARM = Cpu("Pretended Arm", 2, 4, ("neon", "bf16"))


class InPlace(torch.nn.Module):
    """Works in its input's place; the names are ones that a graph has for other things."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 4)

    def forward(self, input, row):
        input.relu_()
        return {"y": self.layer(input)[row], "none": None, "row": row + 1, "same": input}


FEEDS = {
    "input": np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32),
    "row": np.array([4, 0, 1], np.int64),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    torch.manual_seed(0)
    module = InPlace().eval()
    tensors = {name: torch.from_numpy(array.copy()) for name, array in FEEDS.items()}
    path = tmp_path_factory.mktemp("torch") / "m.pt2"
    torch.export.save(torch.export.export(module, (), tensors), path)
    x = torch.from_numpy(FEEDS["input"]).relu()
    return path, module.layer(x)[FEEDS["row"]].detach().numpy()


def compiled(path, precision="f32", threads=1):
    return get("pytorch").compile(path, EngineSettings("pytorch", precision, threads))


def test_it_is_found_by_name_and_is_none_to_write_for():
    assert "pytorch" not in available()
    assert get("pytorch").version[0].isdigit()


@pytest.mark.parametrize(
    ("cpu", "offered"), [(AVX2_ONLY, ("f32",)), (SAPPHIRE, ("f32", "bf16")), (ARM, ("f32", "bf16"))]
)
def test_bf16_is_offered_where_the_cpu_multiplies_in_it(cpu, offered):
    assert get("pytorch").precisions(cpu) == offered


@pytest.mark.parametrize(("precision", "atol"), [("f32", 1e-6), ("bf16", 0.03)])
def test_it_runs_again_and_again_and_leaves_its_inputs_alone(program, precision, atol):
    path, expected = program
    session = compiled(path, precision)
    assert session.input_names == ("input", "row")
    before = {name: array.copy() for name, array in FEEDS.items()}
    for _ in range(3):
        y, row, same = session.run(FEEDS).values()
        assert y.dtype == np.float32
        assert np.allclose(y, expected, atol=atol)
        assert np.array_equal(row, FEEDS["row"] + 1)
        assert np.array_equal(same, FEEDS["input"].clip(0))
    assert all(np.array_equal(array, before[name]) for name, array in FEEDS.items())
    if precision == "bf16":
        assert not np.allclose(y, expected, atol=1e-6)


def test_arrays_that_cannot_be_written_are_taken(program):
    path, expected = program
    locked = {name: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for name, a in FEEDS.items()}
    assert np.allclose(compiled(path).run(locked)["output_0"], expected, atol=1e-6)


def test_threads_are_those_of_a_run(program):
    before = torch.get_num_threads()
    compiled(program[0], threads=before + 1).run(FEEDS)
    assert torch.get_num_threads() == before


def test_the_snippet_gives_the_same(program, monkeypatch):
    path, expected = program
    names = {"feeds": {name: array.copy() for name, array in FEEDS.items()}}
    threads = torch.get_num_threads()
    exec(EngineSettings("pytorch", "f32", 1).snippet(path), names)
    torch.set_num_threads(threads)
    assert np.allclose(names["outputs"]["y"].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({"input": FEEDS["input"]}, "has the inputs input, row; received input"),
        ({**FEEDS, "row": FEEDS["row"].astype(np.int32)}, "'row' takes int64, received int32"),
    ],
)
def test_other_inputs_are_refused(program, feeds, said):
    with pytest.raises(InputError, match=said):
        compiled(program[0]).run(feeds)


def test_what_cannot_be_run_is_one_line(program, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        compiled(tmp_path / "none.pt2")
    (tmp_path / "bad.pt2").write_bytes(b"nothing")
    with pytest.raises(EngineError, match=r"pytorch cannot read .*bad\.pt2"):
        compiled(tmp_path / "bad.pt2")
    with pytest.raises(EngineError, match="f32 or bf16, not in f16"):
        compiled(program[0], "f16")
    with pytest.raises(EngineError, match="pytorch cannot run"):
        compiled(program[0]).run({**FEEDS, "row": np.array([9], np.int64)})
