"""What the README says runs."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import MODELS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_example_runs(tmp_path, monkeypatch, short_measuring):
    (example,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    tiny = MODELS["conv_bn"]
    tiny.save(tmp_path / "model.onnx", 17)
    (samples,) = tiny.samples(32).values()
    np.savez(tmp_path / "calibration.npz", x=samples)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    first, second = names["outputs"], names["again"](samples[:1])
    for a, b in (
        zip(first.values(), second.values(), strict=True) if isinstance(first, dict) else [(first, second)]
    ):
        np.testing.assert_array_equal(a, b)
    assert (tmp_path / "smaller" / "report.html").is_file()


def test_the_commands_are_there():
    said = "\n".join(blocks("console"))
    targets = re.findall(r"^make (\w+)", said, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target
