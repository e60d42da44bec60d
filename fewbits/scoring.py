"""The run's metric, and every candidate's score by it, beside how far its outputs are from the original's."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fewbits.candidates import Candidate
from fewbits.choose import parse_drop
from fewbits.engines.engine import get
from fewbits.errors import EngineError, InputError
from fewbits.figures import Outcome
from fewbits.loaded import Loaded, wrapped
from fewbits.measure.metrics import (
    METRICS,
    Against,
    Function,
    Metric,
    Nothing,
    Scorer,
    Subject,
    as_number,
    number_from,
)
from fewbits.measure.quality import Reference, score
from fewbits.named import SPEC, named
from fewbits.samples import Samples

if TYPE_CHECKING:
    from fewbits.compress import Run

BATCH = 32
EVALUATE = "evaluate"

Evaluate = Callable[[Loaded], float]
TARGETS: dict[Against, str] = {"labels": "the labels", "original": "the original's"}


@dataclass(frozen=True)
class Wish:
    """The metric that was asked for.

    Attributes:
        metric: a row of the table, the user's own function as one; None for the one that the data suggests.
        output: the name of the output to score; None for the metric's own choice.
        of_model: gives the score of a model that runs, in place of one of its outputs.
        own: what raises in it is the user's to see, and not a line of ours.
    """

    metric: Metric | None = None
    output: str | None = None
    of_model: Evaluate | None = None
    own: bool = False


def wished(
    metric: str | Callable[..., Any] | None,
    evaluate: Evaluate | None,
    higher_is_better: bool | None,
    output: str | None,
) -> Wish:
    """The metric that these arguments of :func:`fewbits.compress.compress` stand for.

    Raises:
        InputError: no such metric, module or function; or arguments that exclude each other.
    """
    higher = higher_is_better is not False
    if evaluate is not None:
        if metric is not None:
            raise InputError(f"metric {metric!r} and evaluate are both given; one of them gives the score")
        return Wish(_of_model(EVALUATE, higher, output), None, evaluate, own=True)
    if metric is None:
        if higher_is_better is not None:
            raise InputError("higher_is_better says how to read a function's score; give evaluate or metric")
        return Wish(None, output)
    if metric in METRICS:
        found = METRICS[str(metric)]
        if higher_is_better is not None:
            known = "higher" if found.higher_is_better else "lower"
            raise InputError(
                f"metric {metric!r} has a direction of its own: {known} is better; only a function needs to be told"
            )
        return Wish(found, output)
    name, function = _function(metric)
    if _takes_outputs(function):
        return Wish(_of_outputs(name, higher, function), output)
    return Wish(_of_model(name, higher, output), None, function)


def _function(metric: str | Callable[..., Any]) -> tuple[str, Callable[..., Any]]:
    """A function and its name. Raises InputError for what names none."""
    if not isinstance(metric, str):
        if not callable(metric):
            raise InputError(f"metric is a {type(metric).__name__}; give a name or a function")
        return getattr(metric, "__name__", type(metric).__name__), metric
    if SPEC.fullmatch(metric) is None:
        near = difflib.get_close_matches(metric, METRICS, 1)
        raise InputError(
            f"metric is {metric!r}{f', perhaps {near[0]}' if near else ''}; allowed are {', '.join(METRICS)}, or "
            "module:function"
        )
    with named(metric) as found:
        if not callable(found):
            raise InputError(f"{metric}: is a {type(found).__name__}; give a function that returns a number")
    return metric, found


def _of_model(name: str, higher: bool, output: str | None) -> Metric:
    if output is not None:
        raise InputError(f"metric_output is {output!r}, but {name} is given the model and picks its own")
    what = "as the given function evaluates it"
    return Metric(name, "", higher, what, ("original",), Nothing, joint=("original",))


def _of_outputs(name: str, higher: bool, function: Callable[..., Any]) -> Metric:
    def scorer(subject: Subject) -> Scorer:
        return Function(subject, function)

    what = "as the given function finds it of the outputs"
    return Metric(name, "", higher, what, ("labels", "original"), scorer, joint=("labels", "original"))


def _takes_outputs(function: Callable[..., Any]) -> bool:
    """Whether it can be given outputs and labels; one that takes a single argument is given the model."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # it does not say
        return True
    placed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in placed for one in parameters) != 1 or any(
        one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters
    )


@dataclass(frozen=True)
class Scoring:
    """What every candidate is scored against, and how.

    Attributes:
        reference: the original's outputs.
        metric: the metric, ``description`` in its final words.
        subject: what it looks at.
        wish: what was asked for.
        original: the original's own score, in float32 in the first engine that can run it.
        loss: what losing a share of that score comes to, in the metric's unit.
    """

    reference: Reference
    metric: Metric
    subject: Subject
    wish: Wish
    original: float = math.nan
    loss: Callable[[float], float] = lambda share: share

    def allowed(self, max_drop: str | float) -> float:
        """The largest drop that ``max_drop`` allows, in the metric's unit."""
        return parse_drop(max_drop, self.loss)

    def drop(self, value: float) -> float:
        """What a score loses of the original's; positive is worse."""
        return self.original - value if self.metric.higher_is_better else value - self.original


def open_scoring(run: Run, wish: Wish, originals: Sequence[Candidate]) -> tuple[Scoring, Outcome]:
    """Run the original over the scoring samples in float32, and score it by the metric.

    Gives how to score the others, and what was found of the original.

    Args:
        run: the model, and the samples to score with.
        wish: the metric that was asked for.
        originals: the original in every engine and precision; the first that runs in float32 is the reference.

    Raises:
        InputError: no engine can run it; the metric is not for this model or data; or its score is not a finite number.
    """
    candidate, reference = _reference(run, originals)
    metric, subject = metric_for(wish, run.scoring, reference)
    scoring = Scoring(reference, metric, subject, wish)
    outcome, scorer = _scored(run, candidate, scoring)
    if outcome.score is None:
        raise InputError(
            f"the original's score is not a finite number: {outcome.unscored}; check the metric, or the data it "
            "scores on"
        )
    original = outcome.score

    return replace(scoring, original=original, loss=lambda share: scorer.loss(share, original)), outcome


def scored(run: Run, candidate: Candidate, scoring: Scoring) -> Outcome:
    """Run a candidate over the scoring samples, and score it."""
    try:
        return _scored(run, candidate, scoring)[0]
    except EngineError as error:
        return Outcome(candidate, error=str(error))
    except (
        InputError
    ) as error:  # the metric took the original: it is what this candidate gives that it cannot take
        return Outcome(candidate, unscored=str(error))


def _scored(run: Run, candidate: Candidate, scoring: Scoring) -> tuple[Outcome, Scorer]:
    scorer = scoring.metric.scorer(scoring.subject)
    compiled = get(candidate.settings.engine).compile(candidate.file.path, candidate.settings)
    session, batch = run.scoring.session(compiled), run.scoring.batch or BATCH
    quality = score(session, run.scoring, batch, scoring.reference, scorer)
    value = quality.score if scoring.wish.of_model is None else _evaluated(run, candidate, scoring)
    if math.isfinite(value):
        return Outcome(candidate, quality=quality, score=value), scorer
    return Outcome(candidate, quality=quality, unscored=f"metric {scoring.metric.name!r} is {value}"), scorer


def _evaluated(run: Run, candidate: Candidate, scoring: Scoring) -> float:
    """What the user's own function finds of a model that runs."""
    evaluate, name = scoring.wish.of_model, scoring.metric.name
    assert evaluate is not None
    structure = None if run.origin is None else run.origin.structure
    inputs = tuple(one.name for one in run.model.info.inputs)
    model = wrapped(candidate.file.path, candidate.settings, inputs, structure)
    return as_number(name, evaluate(model)) if scoring.wish.own else number_from(name, evaluate, model)


def _reference(run: Run, originals: Sequence[Candidate]) -> tuple[Candidate, Reference]:
    """The original's outputs in float32, from the first engine that can run it."""
    folder = run.folder / "reference"
    folder.mkdir()
    reference = Reference(folder)
    errors = []
    for one in originals:
        if one.settings.precision == "f32":
            try:
                session = get(one.settings.engine).compile(one.file.path, one.settings)
                reference.record(run.scoring.session(session), run.scoring, run.scoring.batch or BATCH)
                return one, reference
            except EngineError as error:
                errors.append(str(error))
    raise InputError(f"{run.model.path}: no engine can run the original: {'; '.join(errors)}")


def metric_for(wish: Wish, samples: Samples, reference: Reference) -> tuple[Metric, Subject]:
    """The metric for these samples and a model's outputs, and what it looks at.

    Without a wish it is top-1 with labels; without them agreement where the first output looks like classes, else the
    mean cosine.

    Raises:
        InputError: there are no labels for it, or no such output.
    """
    labelled = samples.has_labels()
    metric = wish.metric
    if metric is None:
        unlabelled = "agreement" if reference.looks_like_classes() else "cosine"
        metric = METRICS["top1" if labelled else unlabelled]
    against = next((one for one in metric.against if labelled or one != "labels"), None)
    if against is None:
        raise InputError(
            f"{samples.name}: metric {metric.name!r} needs labels: an array 'labels' beside the inputs, in the data "
            "for eval"
        )
    place = None if against in metric.joint else 0
    if wish.output is not None:
        if wish.output not in reference.outputs:
            raise InputError(
                f"metric_output is {wish.output!r}; the model's outputs are {', '.join(reference.outputs)}"
            )
        place = reference.outputs.index(wish.output)
    words = metric.description.format(target=TARGETS[against])
    if place is not None and len(reference.outputs) > 1:
        words += f"; of the output {reference.outputs[place]!r}"
    subject = Subject(metric.name, samples.name, against, reference.outputs, place)
    return replace(metric, description=words), subject
