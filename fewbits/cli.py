"""Arguments in, one call, exit code out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fewbits.compress import Progress, Result

DONE, WRONG_INPUT, NOT_MET, INTERRUPTED = 0, 2, 3, 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Takes a trained model and hands back the same model in fewer bits, with proof.",
)

ModelPath = Annotated[Path, typer.Argument(help="An .onnx file.", show_default=False)]
Threads = Annotated[
    int | None, typer.Option(help="Threads of one inference (default: physical cores).", min=1)
]
BatchAxis = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=AXIS",
        help="Axis of that input along which samples lie, where it is not the first; repeatable.",
    ),
]
State = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OUTPUT=INPUT",
        help="That output feeds that input of the next step: samples are steps, in their order; repeatable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


@app.command()
def compress(
    model: Annotated[
        str,
        typer.Argument(
            help="An .onnx, .tflite or .keras file; module:factory, a Python callable that returns an nn.Module; a "
            ".safetensors with --arch; or a Hugging Face directory (with --recipe, and without data).",
            show_default=False,
        ),
    ],
    data: Annotated[Path | None, typer.Option(help="Samples to calibrate with (.npz).")] = None,
    evaluate: Annotated[
        Path | None, typer.Option("--eval", help="Samples to score with (.npz), with 'labels' for top-1.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="top1, top5, spearman, mse, psnr, cosine, agreement, or module:function of (outputs, labels) "
            "(default: top1 with labels, else agreement or cosine with the original).",
            show_default=False,
        ),
    ] = None,
    metric_output: Annotated[
        str | None,
        typer.Option(help="The output to score, of several (default: the first).", show_default=False),
    ] = None,
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better", help="Less is better: of the score of a module:function.")
    ] = False,
    arch: Annotated[
        str | None, typer.Option(help="module:factory, which makes the nn.Module of a .safetensors.")
    ] = None,
    batch_axis: BatchAxis = None,
    state: State = None,
    recipe: Annotated[
        str, typer.Option(help="auto, a preset (see fewbits recipes), or a .toml file.")
    ] = "auto",
    engine: Annotated[str, typer.Option(help="auto, onnxruntime, openvino or litert.")] = "auto",
    format: Annotated[
        str, typer.Option(help="Of the files to write: auto, onnx, or tflite (from Keras).")
    ] = "auto",
    max_drop: Annotated[str, typer.Option(help="Largest loss: 1% of the score, or 0.5 in its unit.")] = "1%",
    max_size: Annotated[str | None, typer.Option(help="Largest file: 25% of the original, or 20MB.")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Smallest speedup over float32.", min=0)] = None,
    prefer: Annotated[str, typer.Option(help="speed, size or quality.")] = "speed",
    exclude: Annotated[
        list[str] | None, typer.Option(help="Layers (name pattern or operator) to keep in float; repeatable.")
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(help="Batch sizes to measure throughput at, such as 1,8,32.", show_default=False),
    ] = None,
    time_budget: Annotated[
        str | None,
        typer.Option(help="After which nothing new is tried: 90s, 10m, 1h.", show_default=False),
    ] = None,
    io: Annotated[
        str | None,
        typer.Option(help="What a full-integer .tflite takes and gives: float, int8, uint8 or int16."),
    ] = None,
    float_fallback: Annotated[
        bool, typer.Option("--float-fallback", help="Leave in float what has no integer kernel (.tflite).")
    ] = False,
    effort: Annotated[
        str, typer.Option(help="fast, normal or high: time spent on learning, by recipes that learn.")
    ] = "normal",
    threads: Threads = None,
    seed: Annotated[int, typer.Option(help="Of everything drawn at random.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the result (default: MODEL-fewbits).")] = None,
    json: Json = False,
) -> None:
    """Compress a model, measure every candidate where it will run, and hand over the best that meets the limits."""
    from fewbits.compress import compress as run
    from fewbits.feeding import axes, pairs

    place = out or _default_place(model)

    def make(progress: Progress) -> Result:
        return run(
            model,
            data,
            arch=arch,
            format=format,
            eval=evaluate,
            batch_axis=axes(batch_axis or (), "--batch-axis"),
            state=pairs(state or (), "--state", "OUTPUT=INPUT, such as stateN=state"),
            metric=metric,
            metric_output=metric_output,
            higher_is_better=False if lower_is_better else None,
            recipe=recipe,
            engine=engine,
            max_drop=max_drop,
            max_size=max_size,
            min_speedup=min_speedup,
            prefer=prefer,  # type: ignore[arg-type]
            exclude=exclude or (),
            batch=batch,
            time_budget=time_budget,
            io=io,
            float_fallback=float_fallback,
            effort=effort,  # type: ignore[arg-type]
            threads=threads,
            seed=seed,
            out=place,
            progress=progress,
            say=_say,
        )

    _finish(make, json)


@app.command()
def train(
    recipe: Annotated[
        Path, typer.Argument(help="A .toml with model, data, eval and stages.", show_default=False)
    ],
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the result (default: RECIPE-fewbits).")] = None,
    json: Json = False,
) -> None:
    """Prune, distil, train with rounding and export, stage by stage as a recipe says; interrupted, it goes on."""
    from fewbits.train import train as run
    from fewbits.train import unfinished

    place = out or Path(f"{recipe.with_suffix('')}-fewbits")
    try:
        with _progress() as progress:
            result = run(recipe, out=place, threads=threads, progress=progress)
    except KeyboardInterrupt:
        _say(f"interrupted; the same command goes on from {unfinished(place)}")
        sys.exit(INTERRUPTED)
    _show(result, json)


@app.command()
def inspect(
    model: ModelPath,
    prefer: Annotated[
        str | None, typer.Option(help="Advise on speed, size or quality only.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Show what is in a model, what fewer bits could give, and which technique suits it here, and why."""
    from fewbits.inspection import inspect as look

    found = look(model, prefer)  # type: ignore[arg-type]
    if json:
        print(found.to_json())
    else:
        found.show(_console(sys.stdout))


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="An .onnx file or a folder from compress.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The other, likewise.", show_default=False)],
    data: Annotated[Path, typer.Option(help="Samples to run through both (.npz).", show_default=False)],
    batch_axis: BatchAxis = None,
    state: State = None,
    engine: Annotated[str, typer.Option(help="auto, onnxruntime or openvino.")] = "auto",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Two models side by side: size, speed, outputs."""
    from fewbits.comparison import compare as run
    from fewbits.feeding import axes, pairs

    with _progress() as progress:
        found = run(
            a,
            b,
            data,
            batch_axis=axes(batch_axis or (), "--batch-axis"),
            state=pairs(state or (), "--state", "OUTPUT=INPUT, such as stateN=state"),
            engine=engine,
            threads=threads,
            progress=progress,
        )
    if json:
        print(found.to_json())
    else:
        found.show(_console(sys.stdout))


@app.command()
def measure(
    folder: Annotated[Path, typer.Argument(help="A folder that fewbits compress wrote.", show_default=False)],
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure again, on this machine, what a folder holds."""
    from fewbits.remeasure import measure as run

    with _progress() as progress:
        found = run(folder, threads=threads, progress=progress)
    if json:
        print(found.to_json())
    else:
        found.show(_console(sys.stdout))


@app.command(context_settings={"ignore_unknown_options": True})  # so that -1.5 is a number
def bits(
    number: Annotated[str, typer.Argument(help="A number, such as 2.71828.", show_default=False)],
) -> None:
    """Show a number in every format: sign, exponent, mantissa, value, error."""
    from fewbits.bits_table import show

    show(number, _console(sys.stdout))


@app.command()
def recipes() -> None:
    """List the presets, one line each."""
    from fewbits.planning.recipe import PRESETS, STORED

    print("auto             tries what the engines gain by, and chooses by measurement")
    for recipe in (*PRESETS.values(), *STORED.values()):
        print(f"{recipe.name:16} {recipe.description}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the result.")] = Path("digits-fewbits"),
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Run the main job on real data without a download: a small CNN trained on handwritten digits."""
    from fewbits.demo import demo as run

    _finish(lambda progress: run(out, threads=threads, progress=progress, say=_say), json)


def main() -> None:
    """The command ``fewbits``: a user's mistake is one line on standard error and exit code 2."""
    from fewbits.errors import FewbitsError

    usage_error: Any = typer.BadParameter.__mro__[1]  # typer gives its base no public name
    try:
        code = app(standalone_mode=False)
    except FewbitsError as error:
        print(f"fewbits: {error}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
    except usage_error as error:
        if len(sys.argv) == 1:
            error.show()  # no arguments at all: the help
        else:
            print(f"fewbits: {error.format_message()} (see --help)", file=sys.stderr)
        sys.exit(WRONG_INPUT)
    if code == INTERRUPTED:  # typer's answer to Ctrl-C
        print("fewbits: interrupted; nothing was written", file=sys.stderr)
    sys.exit(code or DONE)


def _default_place(model: str) -> Path:
    from fewbits.named import is_named

    if Path(model).is_dir():
        return Path(f"{Path(model).resolve()}-fewbits")
    name = model.rpartition(":")[2].rpartition(".")[2] if is_named(model) else Path(model).with_suffix("")
    return Path(f"{name}-fewbits")


def _finish(make: Callable[[Progress], Result], json: bool) -> None:
    """Make a result, show it, and end with the exit code for it."""
    from fewbits.compress import Interrupted

    try:
        with _progress() as progress:
            result = make(progress)
    except Interrupted as stop:
        _show(stop.result, json)
        _say(f"interrupted; what was tried until then is in {stop.result.folder}")
        sys.exit(INTERRUPTED)
    _show(result, json)
    raise typer.Exit(DONE if result.met else NOT_MET)


def _say(line: str) -> None:
    print(f"fewbits: {line}", file=sys.stderr)


def _show(result: Any, json: bool) -> None:
    from fewbits.report.terminal import show

    if json:
        print(result.report.to_json())
    else:
        show(result.report, _console(sys.stdout), str(result.folder / "report.html"))


def _console(file: Any) -> Any:
    from rich.console import Console

    return Console(file=file, width=None if file.isatty() else 120)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on standard error, with a line for each stage."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bar.remove_task(task)
                tasks.clear()
                tasks[stage] = bar.add_task(stage, total=None)
            bar.update(tasks[stage], completed=done, total=total or None)

        yield tell
