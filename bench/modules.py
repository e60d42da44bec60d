"""`python -m bench.modules [CASE ...]`: modules that stay in PyTorch, beside optimum-quanto and torchao."""

from __future__ import annotations

import sys

from bench.cases import checkpoint, minilm_torch, mobilevit, module_loading, recurrent, t5
from bench.paths import ROOT
from bench.suite import Suite, main

SUITE = Suite(
    "python -m bench.modules",
    "modules that stay in PyTorch, beside optimum-quanto and torchao, in one run with two threads",
    (
        t5.CASE,
        mobilevit.CASE,
        minilm_torch.CASE,
        *recurrent.CASES.values(),
        module_loading.CASE,
        checkpoint.CASE,
    ),
    "modules",
    ROOT / "docs" / "modules-benchmarks.md",
)

if __name__ == "__main__":
    sys.exit(main(SUITE))
