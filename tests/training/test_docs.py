"""What docs/training.md says runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from fewbits.planning.recipe import read_recipe
from fewbits.planning.training_recipe import read_training_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(32, 8)
    batches = [(x, x[:, :4].argmax(1))]
    names = {"net": net, "calibration": x.numpy(), "loader": batches, "some_batches": batches}
    for number, block in enumerate(blocks("python"), 1):
        exec(compile(block, f"docs/training.md, block {number}", "exec"), names)
    assert Path("net.onnx").is_file() and int((net[0].weight == 0).sum()) == round(0.8 * 8 * 16)
    count_macs = names["count_macs"]
    assert count_macs(names["smaller"], x) <= 0.5 * count_macs(net, x)


def test_the_recipes_are_read(tmp_path):
    rules, stages = blocks("toml")
    (tmp_path / "ternary.toml").write_text(rules)
    assert read_recipe(str(tmp_path / "ternary.toml")).recipe.name == "ternary"
    (tmp_path / "small.toml").write_text(stages)
    kinds = [stage.kind for stage in read_training_recipe(tmp_path / "small.toml").stages]
    assert kinds == ["prune", "distil", "qat", "export"]
