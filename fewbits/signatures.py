"""Several signatures in one file: each is a model of its own, calibrated, rounded and verified by its own data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbits import npz
from fewbits.candidates import Candidate, Draft, Written, drafts, originals
from fewbits.decide import with_bias
from fewbits.errors import EngineError, InputError
from fewbits.figures import Outcome, Part
from fewbits.learnable import inputs_of
from fewbits.measure.latency import Latency
from fewbits.models.model import Model, open_model
from fewbits.planning.model_info import ModelInfo
from fewbits.planning.plan import ActivationPlan, LayerPlan, Plan, WeightPlan
from fewbits.planning.recipe import ResolvedRecipe
from fewbits.planning.stats import Stats
from fewbits.samples import LABELS, open_samples
from fewbits.scoring import Scoring, Wish, open_scoring, scored
from fewbits.verify import Checker

if TYPE_CHECKING:
    from fewbits.compress import Run


@dataclass(frozen=True)
class Given:
    """Samples for one signature to calibrate and to score with; None for what there is none of."""

    data: Any = None
    eval: Any = None


@dataclass(frozen=True)
class Signature:
    """A signature beside the main one that samples were given for.

    Attributes:
        name: of the signature.
        run: it alone, as a model of its own.
        stats: what was observed of it.
    """

    name: str
    run: Run
    stats: Stats | None = None

    def draft(self, main: Draft) -> Draft | None:
        """The main signature's recipe for this one; None where there is nothing to round.

        Raises:
            InputError: it cannot be: it needs data that was not given, or kernels that there are none of.
        """
        info = self.run.model.info
        if not any(layer.weights for layer in info.layers):
            return None
        # Rules that name layers of the main signature alone say nothing here.
        rules = tuple(
            rule
            for rule in main.recipe.rules
            if rule.match == "*" or any(rule.matches(layer) for layer in info.layers)
        )
        resolved = ResolvedRecipe(replace(main.recipe, rules=rules))
        try:
            found, _ = drafts(
                (resolved,), info, self.run.engines, self.run.cpu, self.run.calibration is not None
            )
        except InputError as error:
            raise InputError(f"signature {self.name!r}: {error}") from error
        return found[0]


def split(info: ModelInfo, data: Any, eval: Any) -> dict[str, Given]:
    """What was given for which signature; nothing where it does not name signatures.

    Args:
        info: the model; ``signatures`` lists what may be named, the main one first.
        data, eval: by signature: a mapping with the signatures as keys, an ``.npz`` whose arrays are called
            ``SIGNATURE/INPUT``, or a stream of (signature, batch), as TensorFlow's representative datasets are.

    Raises:
        InputError: a signature that the file does not have; none for the main one.
    """
    named = {which: _named(info, one, which) for which, one in (("data", data), ("eval", eval))}
    if all(one is None for one in named.values()):
        return {}
    main = info.signatures[0]
    calibrating, scoring = (
        {main: plain} if given is None and plain is not None else given or {}
        for given, plain in zip(named.values(), (data, eval), strict=True)
    )
    found = {
        name: Given(calibrating.get(name), scoring.get(name))
        for name in info.signatures
        if name in calibrating or name in scoring
    }
    if main not in found:
        raise InputError(
            f"data: given for {_listed(found)}, but not for {main!r}, the main signature, by which results are chosen; "
            "give it samples too"
        )
    return found


def _named(info: ModelInfo, given: Any, name: str) -> dict[str, Any] | None:
    """Samples by signature; None where signatures are not named."""
    if not info.signatures or given is None:
        return None
    if isinstance(given, (str, Path)):
        if not Path(given).is_file():
            return None
        names = npz.names(Path(given))
        keys = {one.partition("/")[0] for one in names}
        known = any(f"{signature}/" in f"{one}/" for signature in info.signatures for one in keys)
        if not known or _are_inputs(info, names):
            return None
        if bare := sorted(one for one in names if "/" not in one):
            raise InputError(
                f"{given}: array {bare[0]!r} names no signature, and others do; call it SIGNATURE/{bare[0]}: "
                f"{_listed(info.signatures)}"
            )
        return _known(info, {key: npz.Folder(Path(given), key) for key in sorted(keys)}, str(given))
    if isinstance(given, Mapping):
        if _are_inputs(info, given) or not (
            set(info.signatures) & set(given) or any(map(_has_batches, given.values()))
        ):
            return None
        return _known(info, dict(given), name)
    tags = list(dict.fromkeys(_tags(given)))
    if not tags:
        return None
    return _known(info, {tag: _tagged(given, tag) for tag in tags}, name)


def _are_inputs(info: ModelInfo, names: Iterable[str]) -> bool:
    return set(names) - {LABELS} <= {one.name for one in info.inputs}


def _has_batches(value: Any) -> bool:
    """It is no array, so what it stands beside is no batch."""
    return isinstance(value, Mapping) or callable(value)


def _known(info: ModelInfo, found: dict[str, Any], name: str) -> dict[str, Any]:
    for one in found:
        if one not in info.signatures:
            raise InputError(
                f"{name}: is given for a signature {one!r}; the file's are {_listed(info.signatures)}"
            )
    return found


def _again(stream: Any) -> Iterator[Any]:
    return iter(stream() if callable(stream) else stream)


def _tags(given: Any) -> Iterator[str]:
    """The signature that each batch names; none where the first one does not."""
    streams = callable(given) or (isinstance(given, Iterable) and not isinstance(given, Iterator))
    if not streams or hasattr(given, "__array__"):
        return
    for batch in _again(given):
        if not (isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[0], str)):
            return
        yield batch[0]


def _tagged(stream: Any, tag: str) -> Callable[[], Iterator[Any]]:
    return lambda: (batch for name, batch in _again(stream) if name == tag)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def note(info: ModelInfo) -> str | None:
    """Which of several signatures most numbers are of; None where the file has one."""
    if len(info.signatures) < 2:
        return None
    return f"of several signatures, speed, score and the choice are of {info.signatures[0]!r}"


def open_signatures(run: Run, given: Mapping[str, Given]) -> tuple[Signature, ...]:
    """Every signature but the main one that samples were given for, as a file of its own."""
    from fewbits.models.tflite.signatures import take_out

    found = []
    for number, (name, one) in enumerate(list(given.items())[1:]):
        folder = run.folder / f"signature-{number}"
        folder.mkdir()
        model = open_model(take_out(run.model.path, name, folder / run.model.path.name))
        inputs = model.info.inputs
        calibration = None if one.data is None else open_samples(one.data, inputs, f"data for {name!r}")
        if one.eval is not None:
            scoring = open_samples(one.eval, inputs, f"eval for {name!r}")
        else:
            assert calibration is not None
            calibration, scoring = calibration.split()
        if calibration is not None:
            calibration.first()
        alone = replace(
            run,
            model=model,
            folder=folder,
            calibration=calibration,
            scoring=scoring,
            sample=scoring.one_run(),
            notes=[],
        )
        found.append(Signature(name, alone))
    return tuple(found)


def sharing_codes(model: Model, plan: Plan, before: Sequence[tuple[Model, Plan]]) -> Plan:
    """The plan, with weights that hold the same numbers as one in an earlier plan in that one's codes.

    What is looked up in the codes of what reads it keeps its own, whose scale is that of its own results.
    """
    known = {
        _numbers(layer.weights[0]): (other, layer)
        for other, earlier in reversed(before)
        for layer in earlier.layers
        if layer.weights and _own_codes(layer)
    }
    inputs, infos = inputs_of(plan.activations), {layer.node: layer for layer in model.info.layers}
    layers = []
    for layer in plan.layers:
        found = known.get(_numbers(layer.weights[0])) if layer.weights and _own_codes(layer) else None
        if found is not None:
            weights, bias = layer.weights[0], layer.bias
            codes = found[1].weights[0].codes
            assert codes is not None
            weights = replace(weights, codes=replace(codes, name=weights.name))
            activation: ActivationPlan | None = inputs.get(layer.node)
            if bias is not None and activation is not None:
                values = model.weight(bias.name)
                theirs = found[1].bias
                if theirs is not None and np.array_equal(values, found[0].weight(theirs.name)):
                    values = theirs.values  # with what makes up for the rounding
                weights, bias = with_bias(infos[layer.node], weights, values, activation, plan.target)
            layer = replace(layer, weights=(weights,), bias=bias)
        layers.append(layer)
    return replace(plan, layers=tuple(layers))


def _own_codes(layer: LayerPlan) -> bool:
    weight = layer.weights[0]
    return weight.codes is not None and weight.scheme.symmetric


def _numbers(weight: WeightPlan) -> tuple[object, ...]:
    return hashlib.sha256(weight.values.tobytes()).digest(), weight.values.shape, weight.scheme


@dataclass(frozen=True)
class Judge:
    """How the signatures beside the main one are scored, each against itself in float32."""

    signature: Signature
    scoring: Scoring
    original: Outcome
    checker: Checker
    allowed: float

    def part(self, file: Written, candidate: Candidate) -> Part:
        """What was found of the signature in a candidate's file."""
        mine = Candidate(candidate.name, file, candidate.settings)
        outcome = scored(self.signature.run, mine, self.scoring)
        error = outcome.error or outcome.unscored
        if error is None:
            try:
                error = self.checker.difference(mine)
            except EngineError as problem:
                error = str(problem)
        drop = None if outcome.score is None else self.scoring.drop(outcome.score)
        return Part(
            self.signature.name,
            outcome.quality,
            outcome.score,
            drop,
            self.allowed,
            self.scoring.metric,
            error,
        )


@dataclass(frozen=True)
class Finding:
    """Of a signature beside the main one in the file that is handed over; None where it is as it came."""

    judge: Judge
    part: Part | None = None
    candidate: Candidate | None = None
    original: Latency | None = None
    latency: Latency | None = None


def open_judges(signatures: Sequence[Signature], max_drop: str | float, samples: int) -> tuple[Judge, ...]:
    """Score every such signature's original by top-1 where it has labels, else by how far outputs agree.

    Args:
        signatures: those beside the main one.
        max_drop: as for the main one: of its own score, or in its own metric's unit.
        samples: so many are run to hold a file against its plan.
    """
    found = []
    for one in signatures:
        alone = one.run
        file = Written(alone.model.path, None, None, alone.model.bytes_by_dtype())
        scoring, original = open_scoring(alone, Wish(), originals(file, alone.precisions(), alone.threads))
        checker = Checker(alone.model, alone.scoring, samples, alone.folder)
        found.append(Judge(one, scoring, original, checker, scoring.allowed(max_drop)))
    return tuple(found)


def judged(judges: Sequence[Judge], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with what was found of the other signatures; an error of theirs is the candidate's."""
    found = []
    for one in outcomes:
        files = one.candidate.file.others
        parts = tuple(
            judge.part(files[judge.signature.name], one.candidate)
            for judge in judges
            if judge.signature.name in files and one.error is None
        )
        error = next((f"signature {part.signature!r}: {part.error}" for part in parts if part.error), None)
        found.append(replace(one, parts=parts, error=one.error or error))
    return found
