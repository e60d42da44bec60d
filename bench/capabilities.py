"""`python -m bench.capabilities [NET ...]`: what the capability tables say about speed, measured.

Each small net is written in the forms that the tables choose between, by the same code that writes a user's model, and
all its forms are timed side by side. A claim compares two of them. Exit code 0 where every claim holds, 1 where one
does not: its form is slower than the other by more than a tie.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench import nets
from bench.nets import Net
from bench.table import THREADS
from fewbits.decide import decide
from fewbits.engines.cpu import cpu
from fewbits.engines.engine import EngineSettings, get
from fewbits.engines.targets import MOVERS, targets
from fewbits.measure.latency import TIE, Contestant, Latency, Ratio, measure_latency, ratio
from fewbits.models.model import open_model
from fewbits.observe import observe
from fewbits.planning.recipe import PRESETS, Recipe, assign
from fewbits.planning.target import Target
from fewbits.samples import open_samples
from fewbits.threads import one_torch_thread

(ORT,) = targets("onnxruntime", cpu())
INPUTS, EVERYWHERE = targets("openvino", cpu())
DEQUANTIZED = (("int8", "dequantize"),)
ALL_MOVERS = frozenset(MOVERS)
CALIBRATION = 8
PIPED_WIDTH = 180

SIGNED = replace(
    PRESETS["w8a8"],
    rules=tuple(
        replace(rule, activations=replace(rule.activations, qtype="int8"))
        for rule in PRESETS["w8a8"].rules
        if rule.activations is not None
    ),
)
"""The preset w8a8 with activations in int8."""


@dataclass(frozen=True)
class Form:
    """One way of running a net: as a recipe writes it for a target, or as it came, where there is no recipe."""

    target: Target
    recipe: str | Recipe | None = None
    activation_group_size: int = 0

    @property
    def settings(self) -> EngineSettings:
        """What it runs under."""
        return EngineSettings(self.target.engine, "f32", THREADS, self.activation_group_size)


@dataclass(frozen=True)
class Claim:
    """The form called `form` is as fast as the one called `other`, or faster."""

    says: str
    form: str
    other: str


@dataclass(frozen=True)
class Study:
    """A net, its forms by name, and what is claimed of them."""

    net: Net
    forms: Mapping[str, Form]
    claims: Sequence[Claim]


STATIC = "static int8 is faster than float"
DYNAMIC = "dynamic int8 is faster than float"
UNSIGNED = "uint8 activations, not int8"
CAST_MUL = "Cast and Mul, not DequantizeLinear"
FOLDED = "folded weights cost nothing"
FLOATS_MOVED = "moves floats, not codes"
ROUNDED = "activations rounded on the way: faster than float"
BLOCKS = "blocks of int4 by one row: faster than float"


def _studies() -> dict[str, Study]:
    return {
        "resnet": Study(
            nets.resnet(),
            {
                "ort float": Form(ORT),
                "ort w8a8": Form(ORT, "w8a8"),
                "ort w8a8, int8 activations": Form(ORT, SIGNED),
                "ort w8a8, sums float": Form(replace(ORT, quantize_residuals=False), "w8a8"),
                "ort w8": Form(ORT, "w8"),
                "ort w8, DequantizeLinear": Form(replace(ORT, weight_forms=DEQUANTIZED), "w8"),
                "ov float": Form(INPUTS),
                "ov w8a8 inputs": Form(INPUTS, "w8a8"),
                "ov w8a8 everywhere": Form(EVERYWHERE, "w8a8"),
                "ov w8a8 inputs, int8 activations": Form(INPUTS, SIGNED),
            },
            (
                Claim(STATIC, "ort w8a8", "ort float"),
                Claim(UNSIGNED, "ort w8a8", "ort w8a8, int8 activations"),
                Claim("residual sums quantized", "ort w8a8", "ort w8a8, sums float"),
                Claim(CAST_MUL, "ort w8", "ort w8, DequantizeLinear"),
                Claim(FOLDED, "ort w8", "ort float"),
                Claim(STATIC, "ov w8a8 inputs", "ov float"),
                Claim("residual sums on codes are worth a placement", "ov w8a8 everywhere", "ov w8a8 inputs"),
                Claim(UNSIGNED, "ov w8a8 inputs", "ov w8a8 inputs, int8 activations"),
            ),
        ),
        "branching": Study(
            nets.branching(),
            {
                "ort float": Form(ORT),
                "ort w8a8": Form(ORT, "w8a8"),
                "ort w8a8, outputs float": Form(replace(ORT, quantize_outputs=False), "w8a8"),
                "ov float": Form(INPUTS),
                "ov w8a8 inputs": Form(INPUTS, "w8a8"),
            },
            (
                Claim(STATIC, "ort w8a8", "ort float"),
                Claim("results of convolutions quantized", "ort w8a8", "ort w8a8, outputs float"),
                Claim(STATIC, "ov w8a8 inputs", "ov float"),
            ),
        ),
        "shuffled": Study(
            nets.shuffled(),
            {
                "ort w8a8": Form(ORT, "w8a8"),
                "ort w8a8, not repeated": Form(replace(ORT, repeat_after_layout=False), "w8a8"),
                "ort w8a8, floats moved": Form(replace(ORT, moves_through=frozenset()), "w8a8"),
                "ov w8a8": Form(INPUTS, "w8a8"),
                "ov w8a8, codes moved": Form(replace(INPUTS, moves_through=ALL_MOVERS), "w8a8"),
                "ov w8a8, floats pooled": Form(replace(INPUTS, moves_through=frozenset()), "w8a8"),
            },
            (
                Claim("moves codes, not floats", "ort w8a8", "ort w8a8, floats moved"),
                Claim("quantization repeated behind layout operators", "ort w8a8", "ort w8a8, not repeated"),
                Claim(FLOATS_MOVED, "ov w8a8", "ov w8a8, codes moved"),
                Claim("pools codes, not floats", "ov w8a8", "ov w8a8, floats pooled"),
            ),
        ),
        "transformer": Study(
            nets.transformer(),
            {
                "ort float": Form(ORT),
                "ort w8a8": Form(ORT, "w8a8"),
                "ort w8a8, int8 activations": Form(ORT, SIGNED),
                "ort w8a8_dynamic": Form(ORT, "w8a8_dynamic"),
                "ort w8": Form(ORT, "w8"),
                "ort w8, DequantizeLinear": Form(replace(ORT, weight_forms=DEQUANTIZED), "w8"),
                "ov float": Form(INPUTS),
                "ov w8a8": Form(INPUTS, "w8a8"),
                "ov w8a8, codes moved": Form(replace(INPUTS, moves_through=ALL_MOVERS), "w8a8"),
                "ov w8a8_dynamic": Form(replace(INPUTS, dynamic_int8=True), "w8a8_dynamic"),
                "ov w8": Form(INPUTS, "w8"),
                "ov w8, DequantizeLinear": Form(replace(INPUTS, weight_forms=DEQUANTIZED), "w8"),
                "ov w8 a8": Form(INPUTS, "w8", activation_group_size=32),
            },
            (
                Claim(STATIC, "ort w8a8", "ort float"),
                Claim(UNSIGNED, "ort w8a8", "ort w8a8, int8 activations"),
                Claim(DYNAMIC, "ort w8a8_dynamic", "ort float"),
                Claim(CAST_MUL, "ort w8", "ort w8, DequantizeLinear"),
                Claim(FOLDED, "ort w8", "ort float"),
                Claim(STATIC, "ov w8a8", "ov float"),
                Claim(FLOATS_MOVED, "ov w8a8", "ov w8a8, codes moved"),
                Claim("dynamic int8 is slower than float", "ov float", "ov w8a8_dynamic"),
                Claim(CAST_MUL, "ov w8", "ov w8, DequantizeLinear"),
                Claim(ROUNDED, "ov w8 a8", "ov float"),
            ),
        ),
        "perceptron": Study(
            nets.perceptron(),
            {
                "ort float": Form(ORT),
                "ort w8a8": Form(ORT, "w8a8"),
                "ort w8a8_dynamic": Form(ORT, "w8a8_dynamic"),
            },
            (Claim(STATIC, "ort w8a8", "ort float"), Claim(DYNAMIC, "ort w8a8_dynamic", "ort float")),
        ),
        "recurrent": Study(
            nets.recurrent(),
            {
                "ort float": Form(ORT),
                "ort w8": Form(ORT, "w8"),
                "ort w8, DequantizeLinear": Form(replace(ORT, weight_forms=DEQUANTIZED), "w8"),
                "ort w8a8_dynamic": Form(ORT, "w8a8_dynamic"),
                "ov float": Form(INPUTS),
                "ov w8": Form(INPUTS, "w8"),
                "ov w8, DequantizeLinear": Form(replace(INPUTS, weight_forms=DEQUANTIZED), "w8"),
            },
            (
                Claim(FOLDED, "ort w8", "ort float"),
                Claim(CAST_MUL, "ort w8", "ort w8, DequantizeLinear"),
                Claim(DYNAMIC, "ort w8a8_dynamic", "ort float"),
                Claim(FOLDED, "ov w8", "ov float"),
            ),
        ),
        "row": Study(
            nets.row(),
            {
                "ort float": Form(ORT),
                "ort w4_g32": Form(ORT, "w4_g32"),
                "ov float": Form(INPUTS),
                "ov w4_g32": Form(INPUTS, "w4_g32"),
                "ov w8": Form(INPUTS, "w8"),
                "ov w8 a8": Form(INPUTS, "w8", activation_group_size=32),
            },
            (
                Claim(BLOCKS, "ort w4_g32", "ort float"),
                Claim(BLOCKS, "ov w4_g32", "ov float"),
                Claim("int8 by one row: faster than float", "ov w8", "ov float"),
                Claim(ROUNDED, "ov w8 a8", "ov float"),
            ),
        ),
    }


def written(source: Path, form: Form, samples: Mapping[str, np.ndarray], folder: Path) -> Path:
    """The file that a form runs."""
    if form.recipe is None:
        return source
    recipe = PRESETS[form.recipe] if isinstance(form.recipe, str) else form.recipe
    model = open_model(source)
    assigned = assign(recipe, model.info)
    stats = None
    if recipe.needs_data:
        wanted = model.wanted(assigned, form.target)
        model.tapped(wanted.tensors, folder / "tapped.onnx")
        compiled = get("onnxruntime").compile(
            folder / "tapped.onnx", EngineSettings("onnxruntime", "f32", THREADS)
        )
        data = open_samples(samples, model.info.inputs)
        session = data.session(compiled)
        stats = observe(session, data, wanted.tensors, wanted.rows, wanted.samples, data.batch)
    with one_torch_thread():
        placement = model.place(assigned, form.target)
        plan = decide(recipe, assigned, placement, stats, form.target, model.weight)
    path = folder / "model.onnx"
    model.write(plan, path)
    model.read_back(path, plan)
    return path


def measured(study: Study, folder: Path, tell: Callable[[str], None]) -> dict[str, Latency]:
    """Every form of a net, written and timed side by side on one sample."""
    source = study.net.save(folder / "source.onnx")
    samples = study.net.samples(CALIBRATION)
    contestants = []
    for number, (name, form) in enumerate(study.forms.items()):
        tell(f"writing {name}")
        place = folder / str(number)
        place.mkdir()
        contestants.append(Contestant(name, written(source, form, samples, place), form.settings))
    tell("timing all side by side")
    latencies = measure_latency(contestants, {name: array[:1] for name, array in samples.items()})
    return {latency.name: latency for latency in latencies}


@dataclass(frozen=True)
class Verdict:
    """A claim about a net with what was measured of it."""

    net: str
    claim: Claim
    form: Latency
    other: Latency

    @property
    def error(self) -> str | None:
        """Why one of the two has no latency."""
        return self.form.error or self.other.error

    @property
    def measured(self) -> Ratio | None:
        """How many times as fast the claim's form is as the other."""
        return None if self.error else ratio(self.other, self.form)

    @property
    def holds(self) -> bool:
        """Whether the claim was seen to hold; a tie is enough."""
        return self.measured is not None and self.measured.value >= 1 / (1 + TIE)


def verdicts(name: str, study: Study, tell: Callable[[str], None]) -> Iterator[Verdict]:
    """What is claimed of one net, measured."""
    with tempfile.TemporaryDirectory(prefix="fewbits-capabilities-") as folder:
        latencies = measured(study, Path(folder), tell)
    for claim in study.claims:
        yield Verdict(name, claim, latencies[claim.form], latencies[claim.other])


def show(found: Sequence[Verdict], console: Console) -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False)
    for heading in ("net", "claim", "form", "ms", "against", "ms", "times as fast", "95 %", ""):
        justify = "right" if heading in ("ms", "times as fast") else "left"
        table.add_column(heading, justify=justify, no_wrap=True)
    for one in found:
        share = one.measured
        table.add_row(
            one.net,
            one.claim.says,
            one.claim.form,
            f"{one.form.p50_ms:.3f}",
            one.claim.other,
            f"{one.other.p50_ms:.3f}",
            "" if share is None else f"{share.value:.2f}",
            one.error if share is None else f"{share.low:.2f} to {share.high:.2f}",
            "[green]holds[/green]" if one.holds else "[red]does not hold[/red]",
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 where every claim holds, 1 where one does not, 2 for wrong arguments."""
    studies = _studies()
    parser = argparse.ArgumentParser(prog="python -m bench.capabilities", description=__doc__)
    parser.add_argument(
        "nets", nargs="*", metavar="NET", help=f"any of: {', '.join(studies)}; all by default"
    )
    chosen = parser.parse_args(arguments).nets or list(studies)
    if unknown := [name for name in chosen if name not in studies]:
        parser.error(f"no net {', '.join(unknown)}; there are {', '.join(studies)}")
    progress = Console(stderr=True)
    found: list[Verdict] = []
    for name in chosen:

        def tell(what: str, name: str = name) -> None:
            progress.print(f"{name}: {what}", style="dim", highlight=False)

        found += verdicts(name, studies[name], tell)
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    here = cpu()
    console.print(f"{here.name} ({', '.join(here.isa)}), {THREADS} threads", highlight=False)
    show(found, console)
    console.print(f"\n{sum(one.holds for one in found)} of {len(found)} claims hold.", highlight=False)
    return 0 if all(one.holds for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
