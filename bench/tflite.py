"""`python -m bench.tflite [CASE ...]`: .tflite files of fewbits beside those of TensorFlow's converter, in LiteRT.

Both get the same Keras file and the same calibration samples.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench import data, process, quality
from bench.case import Case, Tell
from bench.entrants import LITERT_F32
from bench.keep import kept, version
from bench.paths import ROOT, MissingError, cached
from bench.suite import Suite, main
from bench.table import (
    THREADS,
    CaseResult,
    Check,
    Column,
    Entrant,
    Rows,
    Runnable,
    Scores,
    file_runnable,
    run,
)
from fewbits.engines.engine import EngineSettings
from fewbits.planning.recipe import Recipe, ResolvedRecipe, quantization_aware, write_recipe
from fewbits.planning.scheme import Scheme

LITERT = EngineSettings("litert", "f32", THREADS)
FORMS = {
    "w8a8_dynamic": ("dynamic", "dynamic range"),
    "w8a8": ("int8", "full integer"),
    "fp16": ("float16", "float16"),
    "w8a16": ("int16x8", "16x8"),
}
"""Our recipe for each of the converter's forms."""

NO_LARGER = 1.02
NO_WORSE = 0.1  # points
FOUR_BITS_BYTES, FOUR_BITS_DROP = 15_000, 0.5
NO_SLOWER = 1.05
TRAINED_GAIN = 0.5
LONGER = ", trained as long in float"

Source = Callable[[], Path]


def ours(recipe: str) -> str:
    """What a file of ours is called in tables."""
    return f"fewbits {recipe}"


def peers(form: str) -> str:
    """What a file of the converter's is called."""
    return f"TensorFlow's converter, {form}"


def made_once(function: str, stem: str, suffix: str, files: tuple[Path, ...], **arguments: str) -> Path:
    """The file that a job of `bench.keras_jobs` writes, kept for these files, arguments and versions."""
    versions = f"{version('tensorflow_cpu')} {version('keras')}"
    path = kept("tflite", stem, suffix, files, function=function, versions=versions, arguments=arguments)
    if not path.is_file():
        partial = path.with_name("partial-" + path.name)
        process.call(f"bench.keras_jobs:{function}", out=str(partial), **arguments)
        partial.rename(path)
    return path


def converted(form: str, source: Source, calibration: Source, samples: Path) -> Entrant:
    """A form of the peer's; the plain one is the float contestant."""
    name = LITERT_F32 if form == "float" else peers(form)

    def make() -> Runnable:
        files = (source(), calibration())
        given = {"source": str(files[0]), "form": form, "calibration": str(files[1])}
        path = made_once("converted", f"{source().stem}-{form}", ".tflite", files, **given)
        return file_runnable(name, path, LITERT, samples)

    return Entrant(name, "float" if form == "float" else "peer", make)


def compressed(recipe: str, source: Source, calibration: Source, samples: Path, trained: str = "") -> Entrant:
    """What fewbits writes for one recipe; ``trained`` says in words how the source was trained on."""
    name = ours(Path(recipe).stem) + trained

    def make() -> Runnable:
        made = process.call(
            "bench.ours:smallest",
            source=str(source()),
            calibration=str(calibration()),
            recipe=recipe,
            out=str(cached(f"fewbits/{source().stem}-{Path(recipe).stem}-tflite")),
        ).value
        return file_runnable(name, Path(made), LITERT, samples)

    return Entrant(name, "fewbits", make)


def trained(weight_bits: int, source: Source, training: Path, samples: Path) -> Entrant:
    """The net trained on with rounding, as fewbits writes it."""
    name = ours(f"trained, {weight_bits}-bit weights")

    def make() -> Runnable:
        made = process.call(
            "bench.keras_jobs:trained_with_rounding",
            source=str(source()),
            training=str(training),
            weight_bits=weight_bits,
            out=str(cached(f"fewbits/{source().stem}-trained-{weight_bits}")),
        ).value
        return file_runnable(name, Path(made), LITERT, samples)

    return Entrant(name, "fewbits", make)


def four_and_eight() -> str:
    """A recipe with weights of 4 and activations of 8 bits, by the best that fewbits does without training."""
    recipe = replace(quantization_aware(4), name="w4a8", compensate=True)
    rules = tuple(
        replace(
            rule,
            weights=Scheme("int4", per="channel", range="mse"),
            activations=Scheme("uint8", symmetric=False, range="mse"),
        )
        for rule in recipe.rules
    )
    return _written(replace(recipe, rules=rules))


def nearest_four_and_eight() -> str:
    """The same bits, rounded to nearest over the whole range of each channel."""
    return _written(replace(quantization_aware(4), name="w4a8_nearest"))


def _written(recipe: Recipe) -> str:
    path = cached(f"{recipe.name}.toml")
    path.write_text(write_recipe(ResolvedRecipe(recipe)), encoding="utf-8")
    return str(path)


def mnist(tell: Tell) -> CaseResult:
    """Every form of the guides' net, against the converter's, and 4-bit weights."""
    training, calibration, samples = data.mnist()
    source = made_once("train_mnist", "mnist", ".keras", (training,), training=str(training))
    with np.load(samples) as arrays:
        labels = arrays["labels"]

    def score(reference: np.ndarray, outputs: np.ndarray) -> Scores:
        return {
            "top1": 100 * quality.correct(outputs, labels) / len(labels),
            "sqnr_db": quality.sqnr_db(reference, outputs),
        }

    def same(recipe: str) -> Entrant:
        return compressed(recipe, lambda: source, lambda: calibration, samples)

    def theirs(form: str) -> Entrant:
        return converted(form, lambda: source, lambda: calibration, samples)

    entrants = [theirs("float")]
    for recipe, (form, _) in FORMS.items():
        entrants += [theirs(form), same(recipe)]
    after = [trained(bits, lambda: source, training, samples) for bits in (8, 4)]
    # Further epochs alone make this net better, so these stand in the table beside what was trained with rounding.
    # The targets compare with the net as it came, which is what a user has who does not train.
    longer = made_once(
        "trained_in_float",
        "mnist-longer",
        ".keras",
        (source, training),
        source=str(source),
        training=str(training),
    )
    afterwards = [
        compressed(recipe, lambda: longer, lambda: calibration, samples, LONGER)
        for recipe in ("original", "w8a8", four_and_eight(), nearest_four_and_eight())
    ]
    rows = run(
        [*entrants, same("w8"), same("w4"), same(four_and_eight()), *afterwards, *after], samples, score, tell
    )

    checks: list[Check] = []
    for recipe, (form, words) in FORMS.items():
        peer, mine = peers(form), ours(recipe)
        checks += [
            size_check(rows, f"{words}: MB, the converter's and 2 %", mine, peer),
            rows.score_check(
                f"{words}: top-1, the converter's less {NO_WORSE}",
                mine,
                "top1",
                lambda peer=peer: rows.best("top1", peer) - NO_WORSE,
                "at least",
            ),
        ]

    return CaseResult(
        "mnist",
        "The guides' net on MNIST",
        "28 x 28, batch 1. Trained on 8,000 of the test images, calibrated on 500 of those, scored on the other 2,000.",
        (Column("top1", "top-1 %", "{:.2f}"), Column("sqnr_db", "SQNR dB", "{:.1f}")),
        rows.rows,
        (
            *checks,
            rows.size_check("4-bit weights: MB", ours("w4"), FOUR_BITS_BYTES),
            rows.score_check(
                f"4-bit weights: top-1, float's less {FOUR_BITS_DROP}",
                ours("w4"),
                "top1",
                lambda: rows.best("top1", LITERT_F32) - FOUR_BITS_DROP,
                "at least",
            ),
            rows.score_check(
                "trained with rounding, 8-bit weights: top-1, that of w8a8",
                after[0].name,
                "top1",
                lambda: rows.best("top1", ours("w8a8")),
                "at least",
            ),
            rows.score_check(
                f"trained with rounding, 4-bit weights: top-1, that of w4a8 and {TRAINED_GAIN}",
                after[1].name,
                "top1",
                lambda: rows.best("top1", ours("w4a8")) + TRAINED_GAIN,
                "at least",
            ),
        ),
    )


def size_check(rows: Rows, what: str, mine: str, peer: str) -> Check:
    """The bytes of our file, at most 2 % more than those of the peer's."""
    try:
        (other,) = rows.named(peer)
    except MissingError as missing:
        return Check(what, None, float("nan"), "at most", why=str(missing))
    return rows.size_check(what, mine, NO_LARGER * other.size_bytes)


def mobilenet(tell: Tell) -> CaseResult:
    """A deeper net in full integer: every operator on codes, and as fast as the converter's file."""
    calibration, samples = data.small_images()
    source = made_once("mobilenet", "mobilenet-logits", ".keras", ())

    def score(reference: np.ndarray, outputs: np.ndarray) -> Scores:
        return {"sqnr_db": quality.sqnr_db(reference, outputs)}

    mine, peer = ours("w8a8"), peers("int8")
    rows = run(
        [
            converted("float", lambda: source, lambda: calibration, samples),
            converted("int8", lambda: source, lambda: calibration, samples),
            compressed("w8a8", lambda: source, lambda: calibration, samples),
        ],
        samples,
        score,
        tell,
    )
    return CaseResult(
        "mobilenet",
        "MobileNetV2 (alpha 0.35, 96 x 96, random weights)",
        "Batch 1. Calibrated on 200 CIFAR-10 training images made larger, scored on 200 test images.",
        (Column("sqnr_db", "SQNR dB", "{:.1f}"),),
        rows.rows,
        (
            _float_operators(mine, cached(f"fewbits/{source.stem}-w8a8-tflite")),
            rows.time_check("latency over the converter's full integer", mine, (peer,), NO_SLOWER),
            rows.score_check(
                "SQNR dB, the converter's", mine, "sqnr_db", lambda: rows.best("sqnr_db", peer), "at least"
            ),
        ),
    )


def _float_operators(name: str, folder: Path) -> Check:
    """How many operators of the written file read or make floats, but for QUANTIZE and DEQUANTIZE at its ends."""
    from fewbits.models.tflite.graph import graph_of
    from fewbits.models.tflite.load import load

    what = "operators that compute in float"
    files = sorted(folder.glob("*.tflite"))
    if not files:
        return Check(what, None, 0, "at most", why=f"{name} was not written")
    graph = graph_of(load(files[0]).model)
    ends = {*graph.inputs, *graph.outputs}
    floats = [
        operator
        for operator in graph.operators
        if any(
            index >= 0 and graph.tensors[index].is_float for index in (*operator.inputs, *operator.outputs)
        )
    ]
    inside = [
        operator
        for operator in floats
        if operator.name not in ("QUANTIZE", "DEQUANTIZE")
        or not ends.intersection((*operator.inputs, *operator.outputs))
    ]
    return Check(what, len(inside), 0, "at most", why=f"of {len(graph.operators)}")


SUITE = Suite(
    "python -m bench.tflite",
    "TensorFlow Lite files beside those of TensorFlow's converter, in one run with two threads",
    (
        Case("mnist", "The guides' net on MNIST", mnist),
        Case("mobilenet", "MobileNetV2", mobilenet),
    ),
    "tflite",
    ROOT / "docs" / "tflite-benchmarks.md",
    ("fewbits", "ai-edge-litert", "tensorflow-cpu", "keras"),
)

if __name__ == "__main__":
    sys.exit(main(SUITE))
