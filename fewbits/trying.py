"""Try candidates, the most promising first: write, read back and score each; raise layers where one loses too much."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fewbits.candidates import Candidate, Draft, Written, names_and_settings
from fewbits.correct import Corrected, corrected, reestimated
from fewbits.damage import Damages, LayerDamage, damage
from fewbits.decide import decide
from fewbits.engines.engine import EngineSettings, reads, yardstick
from fewbits.equalize import find_rescalings
from fewbits.errors import InputError
from fewbits.fallback import Attempt, Fallback, fall_back, losing
from fewbits.figures import Outcome
from fewbits.learn import SPENT, Lesson, adopt, learning_target
from fewbits.learned import with_learned
from fewbits.models.network import UnsupportedError
from fewbits.notices import notices, remarks
from fewbits.observe import observe
from fewbits.planning.plan import Placement, Plan
from fewbits.planning.recipe import Recipe, assign
from fewbits.planning.stats import Stats
from fewbits.report import words
from fewbits.scoring import Scoring, scored
from fewbits.sensitivity import sensitivity
from fewbits.signatures import Signature, sharing_codes
from fewbits.threads import one_torch_thread

if TYPE_CHECKING:
    from fewbits.compress import Run


@dataclass(frozen=True)
class Tried:
    """What was tried, and by name what was not because the run ended early; what each recipe does to each layer."""

    outcomes: list[Outcome]
    fallbacks: tuple[Fallback, ...]
    left: tuple[str, ...]
    damages: Damages = field(default_factory=dict)


def different(run: Run, planned: Sequence[Draft]) -> tuple[Draft, ...]:
    """Without those that come to the same file: two of an engine's placements may do so in this model."""
    seen: set[tuple[str, str, Placement]] = set()
    kept = []
    for draft in planned:
        which = (draft.recipe.name, draft.target.engine, run.model.place(draft.assigned, draft.target))
        if which not in seen:
            seen.add(which)
            kept.append(draft)
    return tuple(kept)


def ways_of(run: Run, planned: Sequence[Draft], precision: str | None) -> list[dict[str, EngineSettings]]:
    """Under what each file is to be run, by the names of its candidates; at one precision where that is given."""
    return [
        {
            name: settings
            for name, settings in names_and_settings(draft, planned, run.precisions(), run.threads).items()
            if precision in (None, settings.precision)
        }
        for draft in planned
    ]


def try_in_turn(
    run: Run,
    planned: Sequence[Draft],
    ways: Sequence[Mapping[str, EngineSettings]],
    scoring: Scoring,
    originals: Sequence[Outcome],
    most: float | None,
) -> Tried:
    """Write and score one file after the other, until all have been or the run is to end.

    Args:
        run: the model, the data, and when to end.
        planned: the files, in the order in which they are tried.
        ways: under what each of them is run.
        scoring: how they are scored.
        originals: the original's outcomes.
        most: the drop over which static files get layers back in a higher precision; None to leave them.
    """
    outcomes = list(originals)
    pointless: set[str] = set()
    stats: Stats | None = None
    ready: dict[str, tuple[Run, Stats | None]] = {}
    learned: dict[str, Plan | None] = {}
    fallbacks: list[Fallback] = []
    damages: dict[str, tuple[LayerDamage, ...]] = {}
    with run.ending.keeping(lambda: len(outcomes) > len(originals)):
        for number, (draft, names) in enumerate(zip(planned, ways, strict=True)):
            run.ending.check()
            if draft.recipe.uses_data and stats is None:
                stats = observe_for(run, planned)
                run = replace(run, others=tuple(_observed(one, planned) for one in run.others))
            recipe = draft.recipe
            if recipe.name not in ready:
                ready[recipe.name] = equalized(run, draft, planned, stats)
            scaled, seen = ready[recipe.name]
            if recipe.name not in learned:
                learned[recipe.name] = better_numbers(scaled, draft, seen)
            with run.stage("write"):
                run.progress("write", number, len(planned))
                file, why_not = _written(
                    scaled, draft, seen, run.folder / str(number), planned, learned.get(recipe.name)
                )
            if file is None:
                run.notes.append(why_not)
                pointless |= names.keys()
                continue
            if recipe.name not in damages and file.plan is not None:
                with run.stage("write"), one_torch_thread():
                    damages[recipe.name] = damage(file.plan, run.model.info.layers, seen)
            for name, settings in names.items():
                run.ending.check()
                with run.stage("score"):
                    run.progress("score", number, len(planned))
                    outcomes.append(scored(run, Candidate(name, file, settings), scoring))
                run.reserve(len(outcomes))
        if most is not None and stats is not None:
            _fall_back(run, outcomes, fallbacks, scoring, ready, most)
    done = pointless | {one.candidate.name for one in outcomes}
    left = [name for names in ways for name in names if name not in done]
    if run.ending.early and most is not None:
        begun = [one.start for one in fallbacks]
        losers = [one for one in losing(outcomes, scoring.drop, most) if one not in begun]
        left += [f"{one.candidate.name}, with layers raised" for one in losers]
    return Tried(outcomes + [one.last for one in fallbacks], tuple(fallbacks), tuple(left), damages)


def _written(
    run: Run, draft: Draft, stats: Stats | None, folder: Path, planned: Sequence[Draft], learned: Plan | None
) -> tuple[Written | None, str]:
    """The draft's file; or why there is none, which is an error where nothing but its recipe was asked for."""
    try:
        file = write(run, draft, stats, folder, learned)
    except InputError as error:
        if len({one.recipe.name for one in planned}) == 1:
            raise
        return None, str(error)
    return file, f"recipe {draft.recipe.name!r}: every layer is too small to gain anything"


def write(
    run: Run, draft: Draft, stats: Stats | None, folder: Path, learned: Plan | None = None
) -> Written | None:
    """The draft decided, written to a new folder and read back; None where no layer gains anything by it.

    ``learned`` is a plan whose numbers it takes over.
    """
    with one_torch_thread():
        plan = _decided(run, draft, stats)
    run.note(remarks(plan))
    if learned is not None:
        plan = adopt(run.model, plan, learned)
    if not plan.weights:
        return None
    folder.mkdir(exist_ok=True)
    path = folder / run.model.artifact_name
    run.model.write(plan, path)
    others = _write_others(run, draft, plan, path)
    return Written(path, draft, plan, run.model.read_back(path, plan), others=others, model=run.model)


def _write_others(run: Run, draft: Draft, plan: Plan, path: Path) -> dict[str, Written]:
    """Put the file's other signatures, by the same recipe, in place of those that came; each is read back."""
    if not run.others:
        return {}
    from fewbits.models.tflite.signatures import put_in, take_out

    plans, parts = [(run.model, plan)], {}
    drafted: list[tuple[Signature, Draft, Plan]] = []
    for number, other in enumerate(run.others):
        mine = other.draft(draft)
        if mine is None:
            continue
        with one_torch_thread():
            own = sharing_codes(other.run.model, _decided(other.run, mine, other.stats), plans)
        if not own.weights:
            continue
        plans.append((other.run.model, own))
        drafted.append((other, mine, own))
        parts[other.name] = path.parent / f"{number}.tflite"
        other.run.model.write(own, parts[other.name])
    put_in(path, parts)
    written = {}
    for other, mine, own in drafted:
        part = take_out(path, other.name, parts[other.name])
        found = other.run.model.read_back(part, own)
        written[other.name] = Written(part, mine, own, found, model=other.run.model)
    return written


def _observed(other: Signature, planned: Sequence[Draft]) -> Signature:
    """What every file needs of another signature of the model."""
    mine = []
    for draft in planned:
        with suppress(InputError):  # said where the file is written
            mine.append(other.draft(draft))
    return replace(other, stats=observe_for(other.run, [one for one in mine if one is not None]))


def better_numbers(run: Run, draft: Draft, stats: Stats | None) -> Plan | None:
    """A plan for all targets whose numbers were learned, or else corrected; None for neither."""
    recipe = draft.recipe
    found = learn_for(run, draft, stats) if recipe.learn else None
    return correct_for(run, draft, stats) if found is None and recipe.correct else found


def correct_for(run: Run, draft: Draft, stats: Stats | None) -> Plan | None:
    """What correcting biases, and then batch norms, of the draft's recipe leads to; None where nothing is gained."""
    if stats is None or run.calibration is None:
        return None
    with run.stage("correct"), one_torch_thread():
        try:
            plan = _learnable(run, draft, stats)
            biases = corrected(run.model, plan, run.calibration)
            found = None if biases is None else _kept(run, draft, "biases", biases)
            norms = reestimated(run.model, found or plan, run.calibration)
        except UnsupportedError as error:
            run.notes.append(
                f"recipe {draft.recipe.name!r}: biases are not corrected layer after layer: {error}"
            )
            return None
    return found if norms is None else _kept(run, draft, "batch norms", norms) or found


def _kept(run: Run, draft: Draft, what: str, found: Corrected) -> Plan | None:
    """The corrected plan where it is closer."""
    if found.after >= found.before:
        run.notes.append(
            f"recipe {draft.recipe.name!r}: corrected {what} bring outputs no closer, and are left out"
        )
        return None
    gain = 10 * math.log10(found.before / max(found.after, 1e-30))
    run.notes.append(
        f"recipe {draft.recipe.name!r}: {what} corrected layer after layer, {gain:.1f} dB closer on the data"
    )
    return found.plan


def learn_for(run: Run, draft: Draft, stats: Stats | None) -> Plan | None:
    """What the draft's recipe learns, for all targets; None where nothing is to be learned, or can be."""
    spent, name = SPENT[run.effort], draft.recipe.name
    if stats is None or run.calibration is None or spent is None:
        return None
    with run.stage("learn"), one_torch_thread():
        try:
            plan = _learnable(run, draft, stats)
            lesson = Lesson(run.model, plan, run.calibration, spent)
            needed = lesson.seconds()
        except UnsupportedError as error:
            run.notes.append(f"recipe {name!r}: not learned; weights make up for each other: {error}")
            return None
        run.ending.say(f"learning {name} takes about {words.seconds(needed)}")
        if needed > run.ending.left_s - run.ending.reserved_s:
            run.notes.append(
                f"recipe {name!r}: not learned; it takes about {words.seconds(needed)}, too long"
            )
            return None

        def progress(done: int, total: int) -> None:
            run.ending.check()
            run.progress(f"learn {name}", done, total)

        plan, _ = lesson.learn(run.seed, progress)
    return plan


def _learnable(run: Run, draft: Draft, stats: Stats) -> Plan:
    """The draft's plan for all targets, of a model that runs in torch; UnsupportedError of another."""
    target = learning_target(run.cpu)
    if reads(target.engine) != run.model.format:
        raise UnsupportedError(f"a .{run.model.format} file")
    return _decided(run, replace(draft, target=target), stats)


def _decided(run: Run, draft: Draft, stats: Stats | None) -> Plan:
    placement = run.model.place(draft.assigned, draft.target)
    return decide(draft.recipe, draft.assigned, placement, stats, draft.target, run.model.weight)


def equalized(
    run: Run, draft: Draft, planned: Sequence[Draft], stats: Stats | None
) -> tuple[Run, Stats | None]:
    """The run with the model that the draft's recipe rounds, and what is observed of that.

    It is the same function as the original, with channels rescaled where the recipe says so and rounding gains by it.
    """
    known = stats if draft.recipe.uses_data else None
    learns = draft.recipe.learn and known is not None and SPENT[run.effort] is not None
    run.note(notices(draft.assigned, known, run.model.weight, learns))
    if not draft.recipe.equalize or not run.model.info.links:
        return run, stats
    with run.stage("equalize"), one_torch_thread():
        found = find_rescalings(run.model, draft.assigned, stats)
        if not found:
            return run, stats
        scaled = replace(run, model=run.model.rescaled(found))
    most = max(one.gain for one in found)
    run.notes.append(
        f"recipe {draft.recipe.name!r}: channels rescaled between {len(found)} pairs of layers, for up to "
        f"{10 * math.log10(most):.0f} dB less noise there; the same function in float"
    )
    if stats is not None:
        stats = observe_for(scaled, [one for one in planned if one.recipe.name == draft.recipe.name])
    return scaled, stats


def observe_for(run: Run, planned: Sequence[Draft]) -> Stats | None:
    """Stream the calibration data through the float model once, for every file that gains by it."""
    wanted = [run.model.wanted(draft.assigned, draft.target) for draft in planned if draft.recipe.uses_data]
    target = learning_target(run.cpu)
    if reads(target.engine) == run.model.format:
        wanted += [run.model.wanted(one.assigned, target) for one in planned if one.recipe.once]
    if not wanted or run.calibration is None:
        return None
    with run.stage("observe"), one_torch_thread():
        tensors = list(dict.fromkeys(name for one in wanted for name in one.tensors))
        path = run.folder / f"observed.{run.model.format}"
        run.model.tapped(tensors, path)
        engine = yardstick(run.model.format)
        compiled = engine.compile(path, EngineSettings(engine.name, "f32", run.threads))
        session = run.calibration.session(compiled)
        rows = {name for one in wanted for name in one.rows}
        samples = {name for one in wanted for name in one.samples}

        def progress(done: int) -> None:
            run.ending.check()
            run.progress("observe", done, 0)

        stats = observe(session, run.calibration, tensors, rows, samples, run.calibration.batch, progress)
        trained = None if run.origin is None else run.origin.trained
        return stats if trained is None else with_learned(stats, compiled, trained)


def _fall_back(
    run: Run,
    outcomes: Sequence[Outcome],
    found: list[Fallback],
    scoring: Scoring,
    ready: Mapping[str, tuple[Run, Stats | None]],
    most: float,
) -> None:
    """Where static files lose more than is allowed, raise their layers until one does not."""
    assert run.calibration is not None
    with run.stage("fall back"):
        for start in losing(outcomes, scoring.drop, most):
            run.ending.check()
            scaled, stats = ready[start.candidate.recipe]
            assert stats is not None
            place = run.folder / f"raised-{len(found)}"
            place.mkdir()

            def progress(done: int, total: int) -> None:
                run.ending.check()
                run.progress("fall back", done, total)

            with one_torch_thread():
                errors = sensitivity(scaled.model, start.candidate, stats, run.calibration, place, progress)
            attempt = _attempts(scaled, start, scoring, stats, place)
            way = fall_back(start, errors, attempt, scoring.drop, most, run.ending)
            if way.steps:
                found.append(way)
            run.reserve(len(outcomes) + len(found))


def _attempts(run: Run, start: Outcome, scoring: Scoring, stats: Stats, place: Path) -> Attempt:
    draft = start.candidate.file.draft
    assert draft is not None

    def attempt(recipe: Recipe) -> Outcome:
        raised = replace(draft, recipe=recipe, assigned=assign(recipe, run.model.info))
        learned = start.candidate.file.plan if draft.recipe.once else None
        file = write(run, raised, stats, Path(tempfile.mkdtemp(dir=place)), learned)
        assert file is not None
        name = start.candidate.name.replace(draft.recipe.name, recipe.name, 1)
        return scored(run, replace(start.candidate, name=name, file=file), scoring)

    return attempt
