"""Which technique suits a model, a CPU and an aim, and why: from measured facts and the engines' capability tables.

What is advised is among what ``fewbits compress`` tries, in the order in which the tables let one expect it; compress
measures it. ``docs/choosing.md`` says the same in prose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fewbits.candidates import (
    ORIGINAL,
    Candidate,
    Draft,
    Written,
    drafts,
    names_and_settings,
    originals,
    resolve,
)
from fewbits.engines.cpu import Cpu
from fewbits.engines.engine import Engine
from fewbits.engines.targets import GAIN_IN_PAIRS, GAIN_OF_16_BITS, GAINS
from fewbits.facts import Facts
from fewbits.numerics import find
from fewbits.planning.model_info import LayerKind, ModelInfo
from fewbits.planning.recipe import PRESETS, Assignment
from fewbits.planning.target import Way
from fewbits.report import words
from fewbits.report.record import Number, Record

Aim = Literal["speed", "size", "quality"]
AIMS: tuple[Aim, ...] = get_args(Aim)

LEAST_SHARE = 0.05  # of the multiplications, under which a way is not worth a word
FEW_ROWS = 8  # up to which reading a weight takes longer than multiplying it
LEAST_PER_OPERATOR = 100_000  # multiplications, under which calling operators takes the time
CLOSE = 1.03  # what is expected within this of the fastest is as good
LARGEST_FP16 = 65_504.0
# Of outputs, dB: 16-bit weights 65, 8-bit weights 28 to 45, activations rounded as well 26 to 40 (docs/benchmarks.md).
BY_QUALITY = ("fp16", "w8", "w8a16", "w8a8_dynamic", "w8a8", "w4_g128", "w4")
DYNAMIC = ("linear layers", "LSTM")
WORTH_4_BITS = 0.8  # of the size without them, at most

_KINDS: dict[str, str] = {
    "conv": "convolutions",
    "linear": "linear layers",
    "product": "products with constants",
    "matmul": "products of two activations",
    "embedding": "embeddings",
    "recurrent": "recurrent layers",
}


class Technique(Record):
    """One way of running the model, and why.

    Attributes:
        recipe: a preset, or ``original`` for the file as it came.
        engines: those in which the tables expect the same of it.
        precision: what the engine computes floats in.
        rounds_activations: whether the engine is told to round the activations of weight-only layers.
        needs_data: it cannot be written without calibration data.
        size_ratio: of its file over the model's, by arithmetic.
        because: sentences; each names its fact.
    """

    recipe: str
    engines: tuple[str, ...]
    precision: str
    rounds_activations: bool
    needs_data: bool
    size_ratio: Number
    because: tuple[str, ...]

    @property
    def title(self) -> str:
        """In words, without the reasons."""
        rounding = ", activations rounded to 8 bits" if self.rounds_activations else ""
        precision = "" if self.precision == "f32" else f" at {self.precision}"
        what = f"{self.recipe} in {' or '.join(self.engines)}{precision}{rounding}"
        return f"{what} (needs --data)" if self.needs_data else what


class Advice(Record):
    """What suits one aim.

    Attributes:
        aim: as of ``--prefer``.
        take: the technique.
        without_data: what to take without calibration data, where ``take`` needs some.
    """

    aim: Aim
    take: Technique
    without_data: Technique | None = None


class Unsuited(Record):
    """A preset that ``auto`` tries, but which this model has little for, and why."""

    recipe: str
    why: str


@dataclass(frozen=True)
class _Option:
    """A candidate with the share of multiplications that each way makes faster, and the time that is expected of it."""

    candidate: Candidate
    ways: Mapping[Way, float]
    time: float

    @property
    def draft(self) -> Draft | None:
        return self.candidate.file.draft

    @property
    def needs_data(self) -> bool:
        return self.draft is not None and self.draft.recipe.needs_data

    @property
    def coarse(self) -> bool:
        """Some weights have fewer than 8 bits."""
        return self.draft is not None and _coarse(self.draft.recipe.name)

    @property
    def key(self) -> tuple[str, str, int]:
        """What is the same technique in several engines."""
        settings = self.candidate.settings
        return self.candidate.recipe, settings.precision, settings.activation_group_size


def advise(
    info: ModelInfo,
    facts: Facts,
    sizes: Mapping[str, float],
    engines: Mapping[str, Engine],
    machine: Cpu,
) -> tuple[Advice, ...]:
    """What suits speed, size and quality, in this order; nothing where there is no engine.

    Args:
        info: the model.
        facts: what was measured of it.
        sizes: of the file over the original's, by preset; those that fit the model.
        engines: that are here.
        machine: the CPU.
    """
    options = tuple(_options(info, facts, engines, machine))
    if not options:
        return ()
    found = []
    for aim in AIMS:
        take = _best(aim, options, facts, sizes)
        free = [one for one in options if not one.needs_data]
        other = _best(aim, free, facts, sizes) if take.needs_data else None
        found.append(Advice(aim=aim, take=take, without_data=other))
    return tuple(found)


def unsuited(
    info: ModelInfo, facts: Facts, engines: Mapping[str, Engine], machine: Cpu
) -> tuple[Unsuited, ...]:
    """The presets of ``auto`` that are passed over, or that have little to work on."""
    found = []
    for one in resolve("auto", ()):
        name = one.recipe.name
        worth, passed = drafts([one, one], info, engines, machine, has_data=True)
        if passed:
            found.append(Unsuited(recipe=name, why=passed[0].removeprefix(f"recipe {name!r}: ")))
        elif name == "w8a8_dynamic" and worth and facts.multiplications:
            gaining = max(sum(_ways(draft, False, facts).values()) for draft in worth)
            if gaining < 0.5:
                why = f"{words.share(gaining)} of the multiplications are in what it is for: {' and '.join(DYNAMIC)}"
                found.append(Unsuited(recipe=name, why=why))
        elif name == "w4_g128" and worth and (linear := facts.bytes_by_kind.get("linear") or 0.0) < 0.2:
            share = words.share(linear)
            found.append(Unsuited(recipe=name, why=f"{share} of the file is weights of linear layers"))
    return tuple(found)


def _options(info: ModelInfo, facts: Facts, engines: Mapping[str, Engine], machine: Cpu) -> Iterator[_Option]:
    """What compress would try with data, as far as the tables tell."""
    planned, _ = drafts(resolve("auto", ()), info, engines, machine, has_data=True)
    nowhere = Path()
    precisions = {name: engine.precisions(machine) for name, engine in engines.items()}
    tried = list(originals(Written(nowhere, None, None), precisions, threads=1))
    for draft in planned:
        ways_to_run = names_and_settings(draft, planned, precisions, threads=1)
        tried += [Candidate(name, Written(nowhere, draft, None), one) for name, one in ways_to_run.items()]
    for one in tried:
        ways = {} if one.file.draft is None else _ways(one.file.draft, _rounds(one), facts)
        floats = GAIN_OF_16_BITS if one.settings.precision != "f32" else 1.0
        time = (1 - sum(ways.values())) / floats
        for way, share in ways.items():
            pairs = facts.adds_pairs and way in ("codes", "as they come")
            gain = GAIN_IN_PAIRS if pairs else GAINS[one.settings.engine][way]
            time += share / max(gain, floats)
        yield _Option(one, ways, time)


def _rounds(one: Candidate) -> bool:
    return bool(one.settings.activation_group_size)


def _ways(draft: Draft, rounds: bool, facts: Facts) -> dict[Way, float]:
    """The share of all multiplications that each way makes faster."""
    of_kind: Counter[str] = Counter()
    for a in draft.assigned:
        of_kind[a.layer.kind] += a.layer.params
    found: dict[Way, float] = {}
    for a in draft.assigned:
        way = _way(a, draft, rounds, facts.rows)
        if way is not None:
            share = facts.share(a.layer.kind) * a.layer.params / max(1, of_kind[a.layer.kind])
            found[way] = found.get(way, 0.0) + share
    return found


def _way(a: Assignment, draft: Draft, rounds: bool, rows: float | None) -> Way | None:
    layer = a.layer
    if a.weights is None or a.weights.is_float:
        return None
    if a.activations is not None and a.activations.dynamic:
        return "as they come" if draft.target.takes_dynamic(layer.op) else None
    if a.activations is not None:
        return "codes" if layer.kind in ("conv", "linear") and find(a.activations.qtype).bits == 8 else None
    if layer.kind != "linear":
        return None
    if rounds:
        return "rounded"
    few = rows is not None and rows <= FEW_ROWS
    return "packed" if few and draft.target.stays_packed(a.weights) else None


def _best(aim: Aim, options: Sequence[_Option], facts: Facts, sizes: Mapping[str, float]) -> Technique:
    if aim == "speed":
        fastest = min(one.time for one in options)
        close = [one for one in options if one.time <= CLOSE * fastest]
        chosen = min(
            close,
            key=lambda one: (one.needs_data, one.coarse, one.key[1] != "f32", sizes.get(one.key[0], 1.0)),
        )
        why = tuple(_why_fast(chosen, facts))
    elif aim == "size":
        recipe = _smallest({one.candidate.recipe for one in options}, sizes)
        chosen = _fastest(recipe, options)
        why = tuple(_why_small(recipe, facts, sizes))
    else:
        recipe = _closest({one.candidate.recipe for one in options}, facts)
        chosen = _fastest(recipe, [one for one in options if one.candidate.settings.precision == "f32"])
        why = tuple(_why_close(recipe, facts, sizes))
    alike = [one for one in options if one.key == chosen.key and one.time <= CLOSE * chosen.time]
    recipe, precision, group = chosen.key
    return Technique(
        recipe=recipe,
        engines=tuple(dict.fromkeys(one.candidate.settings.engine for one in alike)),
        precision=precision,
        rounds_activations=bool(group),
        needs_data=chosen.needs_data,
        size_ratio=sizes.get(recipe, 1.0),
        because=why,
    )


def _fastest(recipe: str, options: Iterable[_Option]) -> _Option:
    """Of one recipe, with activations left as the recipe has them."""
    own = [one for one in options if one.candidate.recipe == recipe and not one.key[2]]
    return min(own, key=lambda one: (one.key[1] != "f32", one.time))


def _smallest(recipes: Iterable[str], sizes: Mapping[str, float]) -> str:
    """The smallest without data; but fewer than 8 bits have to save something."""
    fitting = [name for name in BY_QUALITY if name in recipes and name in sizes]
    if not fitting:
        return ORIGINAL
    fine = [name for name in fitting if not _coarse(name)]
    smallest, without = min(fitting, key=sizes.__getitem__), min(fine, key=sizes.__getitem__)
    return smallest if sizes[smallest] <= WORTH_4_BITS * sizes[without] else without


def _coarse(recipe: str) -> bool:
    schemes = [rule.weights for rule in PRESETS[recipe].rules if rule.weights is not None]
    return any(scheme.qtype == "int4" for scheme in schemes)


def _closest(recipes: Iterable[str], facts: Facts) -> str:
    fitting = [name for name in BY_QUALITY if name in recipes]
    if not fitting:
        return ORIGINAL
    if fitting[0] == "fp16" and (facts.largest_weight or 0.0) > LARGEST_FP16:
        return fitting[1] if len(fitting) > 1 else ORIGINAL
    return fitting[0]


def _why_fast(chosen: _Option, facts: Facts) -> Iterator[str]:
    target = None if chosen.draft is None else chosen.draft.target
    precision = chosen.candidate.settings.precision
    if facts.multiplications is None:
        yield "how often its layers multiply follows from the data, so their weights are counted instead"
    elif facts.multiplications < LEAST_PER_OPERATOR * facts.operators:
        yield (
            f"its {words.count(facts.operators)} operators share {_large(facts.multiplications)} multiplications: "
            "calling them takes much of the time, and fewer bits may gain little"
        )
    ways = {way: share for way, share in chosen.ways.items() if share >= LEAST_SHARE}
    for way, share in ways.items():
        where = _where(chosen, facts, way)
        of = f"{words.share(share)} of {_work(facts)} are in {where}"
        if way == "codes":
            yield f"{of}, which run on codes on both sides; {_products(facts)}"
        elif way == "as they come":
            yield f"{of}, whose activations are quantized as they come; {_products(facts)}"
        elif way == "rounded":
            yield f"{of}, whose activations the engine rounds as they come; {_products(facts)}"
        else:
            yield (
                f"{of}, whose weights meet {_rows(facts)} of a sample: reading them takes the time, and they are read "
                "as codes"
            )
    if "codes" in ways and facts.share("conv") >= 0.5:
        yield "fewer bits for weights alone would not do: those of convolutions are brought back when they are loaded"
    if target is not None and target.saturates and "codes" in ways:
        yield "this CPU adds the products of codes in pairs in 16 bits, so weights get 7 bits, and less is gained"
    floats = 1 - sum(chosen.ways.values())
    if precision != "f32":
        rest = (
            "all of it"
            if not chosen.ways
            else f"the {words.share(floats)} of multiplications that stay float"
        )
        yield f"this CPU computes in {precision}, which makes {rest} faster; it is not harmless, so look at the drop"
    elif not ways:
        yield f"nothing that is tried makes {_kinds(facts)} faster"
    if facts.open_axes and facts.multiplications is not None:
        axes = _list(f"'{axis}'" for axis in facts.open_axes)
        yield f"counted with {facts.open_size} elements on what is open in its inputs: {axes}"


def _why_small(recipe: str, facts: Facts, sizes: Mapping[str, float]) -> Iterator[str]:
    if recipe == ORIGINAL:
        yield "no preset fits it"
        return
    shares = {kind: share or 0.0 for kind, share in facts.bytes_by_kind.items() if (share or 0.0) >= 0.005}
    weights = ", ".join(f"{words.share(share)} those of {_KINDS[kind]}" for kind, share in shares.items())
    yield f"{words.share(sum(shares.values()))} of the file is weights ({weights})"
    if _coarse(recipe):
        where = "4 bits" if recipe == "w4" else "4 bits for linear layers and 8 for the rest"
        yield (
            f"{where} make it {words.share(sizes[recipe])} of the file, 8 bits for all {words.share(sizes['w8'])}; "
            "small models lose more by 4 bits, so look at the drop"
        )
    else:
        yield f"{recipe} makes it {words.share(sizes[recipe])} of the file"
        finer = next((name for name in BY_QUALITY if name in sizes and _coarse(name)), None)
        if finer is not None and sizes[finer] < sizes[recipe]:
            yield f"{finer}, which costs more quality, would make that {words.share(sizes[finer])}"


def _why_close(recipe: str, facts: Facts, sizes: Mapping[str, float]) -> Iterator[str]:
    if recipe == ORIGINAL:
        yield "no preset fits it"
        return
    largest = "" if facts.largest_weight is None else f"{facts.largest_weight:.3g}"
    if recipe == "fp16":
        yield f"its largest weight is {largest}, so 16-bit floats hold them all, to 11 bits"
    else:
        yield f"its largest weight is {largest}, which 16-bit floats do not hold; 8 bits have a scale for each channel"
    yield f"{words.share(sizes.get(recipe))} of the file, with everything computed in float32 as before"


def _where(chosen: _Option, facts: Facts, way: Way) -> str:
    assert chosen.draft is not None
    rounds, assigned = _rounds(chosen.candidate), chosen.draft.assigned
    kinds = {a.layer.kind for a in assigned if _way(a, chosen.draft, rounds, facts.rows) == way}
    shown: list[LayerKind] = sorted(kinds, key=lambda kind: -facts.share(kind))
    return _list(_KINDS[kind] for kind in shown if facts.share(kind) >= 0.005) or _KINDS["linear"]


def _work(facts: Facts) -> str:
    if facts.multiplications is None:
        return "its weights"
    return f"its {_large(facts.multiplications)} multiplications"


def _products(facts: Facts) -> str:
    if facts.int8:
        return f"this CPU multiplies 8-bit codes by {_list(facts.int8)}"
    return "this CPU has no instructions for products of 8-bit codes"


def _kinds(facts: Facts) -> str:
    shown = [_KINDS[kind] for kind, share in facts.multiplications_by_kind.items() if (share or 0.0) >= 0.05]
    return _list(shown) or "it"


def _rows(facts: Facts) -> str:
    rows = facts.rows or 0.0
    return "one row" if rows == 1 else f"{rows:.3g} rows"


def _list(several: Iterable[str]) -> str:
    *most, last = list(several) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _large(number: float | None) -> str:
    """Three digits with a word: 41.2 million."""
    value = number or 0.0
    for word, scale in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if value >= 0.9995 * scale:
            scaled = value / scale
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {word}"
    return words.count(value)
