"""`python -m bench.training [CASE ...]`: what training with fewer bits reaches, and the time it takes."""

from __future__ import annotations

import sys

from bench.cases import training_cifar, training_pruned
from bench.paths import ROOT
from bench.suite import Suite, main

SUITE = Suite(
    "python -m bench.training",
    "what training with fewer bits reaches on ResNet-20, and the time it takes",
    (*training_cifar.ROUNDED, training_cifar.SIXTEEN_BITS, training_pruned.CASE),
    "training",
    ROOT / "docs" / "training-benchmarks.md",
)

if __name__ == "__main__":
    sys.exit(main(SUITE))
