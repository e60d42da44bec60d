"""`python -m bench [CASE ...]`: fewbits beside its peers, in one run on the same files, with two threads."""

from __future__ import annotations

import sys

from bench.cases import CASES
from bench.paths import ROOT
from bench.suite import Suite, main

SUITE = Suite(
    "python -m bench",
    "fewbits beside its peers, in one run on the same files, with two threads",
    tuple(CASES.values()),
    "latest",
    ROOT / "docs" / "benchmarks.md",
)

if __name__ == "__main__":
    sys.exit(main(SUITE))
