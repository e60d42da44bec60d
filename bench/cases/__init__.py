"""The cases by name, in the order they run."""

from __future__ import annotations

from bench.case import Case
from bench.cases import (
    calibration_memory,
    calibration_time,
    cifar,
    fallback,
    magika,
    minilm,
    minilm_module,
    random_weights,
    silero,
)

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        minilm.CASE,
        minilm_module.CASE,
        random_weights.RESNET18,
        random_weights.MOBILENETV2,
        random_weights.MOBILEVIT,
        cifar.RESNET20,
        cifar.RESNET56,
        magika.CASE,
        silero.CASE,
        fallback.CASE,
        calibration_time.CASE,
        calibration_memory.CASE,
    )
}
