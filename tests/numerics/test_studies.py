"""The studies say what is known to be true, and the examples run."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fewbits.numerics.studies import dot_product_errors, sqnr_against_bits, weight_histogram

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_dot_products():
    found = {(r.qtype, r.length): r for r in dot_product_errors(lengths=(16, 1024), trials=32)}
    for length in (16, 1024):
        # fp16 has 3 bits more than bf16, fp32 13 more than fp16.
        assert 4 < found["bf16", length].rounded / found["fp16", length].rounded < 16
        assert found["fp32", length].rounded < found["fp16", length].rounded / 100
    # Rounding errors of inputs average out; those of a running sum in few bits add up.
    assert found["bf16", 1024].rounded < found["bf16", 16].rounded
    assert found["bf16", 1024].accumulated > 5 * found["bf16", 1024].rounded


def test_histograms():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    for bits in (2, 4, 8):
        h = weight_histogram(x, bits, bins=100)
        assert int(h.before.sum()) == int(h.after.sum()) == 10_000
        assert h.distinct <= 2**bits
        assert h.edges.shape == (101,)
    assert weight_histogram(x, 2).sqnr_db < weight_histogram(x, 8).sqnr_db - 30


def test_sqnr_against_bits():
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    points = {(p.kind, p.bits): p.sqnr_db for p in sqnr_against_bits(x, (2, 3, 4, 6))}
    for bits in (2, 3, 4, 6):
        assert (
            points["int, whole range", bits]
            <= points["int, least error", bits]
            < points["learned codebook", bits]
        )
    # 6.02 dB a bit for a uniform grid over a fixed range, and a little more, as one code serves zero.
    assert points["int, whole range", 6] - points["int, whole range", 4] == pytest.approx(12.04, abs=1.5)
    assert ("powers of two", 4) in points
    assert ("float", 4) in points


@pytest.mark.parametrize(
    "name", ["numerics_bits", "numerics_dot_product", "numerics_histogram", "numerics_sqnr"]
)
def test_examples_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out
    if name != "numerics_bits":
        (page,) = tmp_path.glob("*.html")
        assert "Plotly.newPlot" in page.read_text()


def test_importing_fewbits_does_not_import_torch():
    code = "import sys, fewbits; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
