"""What the timed and weighed cases run, each in a process of its own."""

from __future__ import annotations

import os
import time

from bench import ours, peers
from bench.table import THREADS


def nncf_seconds(source: str, calibration: str, held_out: str, out: str) -> float:
    """Seconds from reading the ONNX file to the written OpenVINO file, on two cores, imports not counted.

    NNCF needs no samples beside those it calibrates on.
    """
    _stay_on_cores(THREADS)
    import nncf  # noqa: F401
    import openvino  # noqa: F401

    start = time.perf_counter()
    peers.nncf_openvino(source, calibration, out, transformer=True)
    return time.perf_counter() - start


def fewbits_seconds(source: str, calibration: str, held_out: str, out: str) -> float:
    """Seconds from reading the ONNX file to the written one, on two cores."""
    _stay_on_cores(THREADS)
    return ours.write_seconds(source, calibration, held_out, out)


def nncf_static(source: str, calibration: str, held_out: str, out: str) -> None:
    """Read, calibrate and write a convolutional net with NNCF, which needs no other samples."""
    peers.nncf_openvino(source, calibration, out, transformer=False)


def fewbits_static(source: str, calibration: str, held_out: str, out: str) -> None:
    """Read, calibrate and write w8a8 with fewbits, and all that `fewbits.compress` does beside."""
    ours.write_seconds(source, calibration, held_out, out)


def _stay_on_cores(number: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])
