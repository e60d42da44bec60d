"""`python -m bench.accuracy [CASE ...]`: what few bits cost in accuracy, beside peers, and what they take to find."""

from __future__ import annotations

import sys

from bench.cases import accuracy_cifar, accuracy_minilm
from bench.paths import ROOT
from bench.suite import Suite, main

SUITE = Suite(
    "python -m bench.accuracy",
    "what few bits cost in accuracy, beside peers, and what they take to find, with two threads",
    (accuracy_cifar.RESNET20, accuracy_cifar.RESNET56, accuracy_minilm.CASE),
    "accuracy",
    ROOT / "docs" / "accuracy.md",
)

if __name__ == "__main__":
    sys.exit(main(SUITE))
