"""The Report record: what was measured, what was chosen, and why; ``report.json`` version 1.

A record says nothing it does not know: a value that could not be measured is None, and NaN or infinity
given for a number is stored as None, so the JSON never holds either. Keys may be added; none is renamed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from fewbits.errors import InputError

VERSION: Literal[1] = 1
UNKNOWN_KEY = "extra_forbidden"


def _finite_or_none(value: Any) -> Any:
    """A NumPy scalar becomes a Python number; NaN and infinity become None."""
    if hasattr(value, "item") and not isinstance(value, (int, float)):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _without(document: Any, errors: Iterable[Mapping[str, Any]]) -> Any:
    """A parsed report without the keys that errors call unknown."""
    for error in errors:
        if error["type"] == UNKNOWN_KEY:
            place = document
            for step in error["loc"][:-1]:
                place = place[step]
            del place[error["loc"][-1]]
    return document


def _plain(value: Any) -> Any:
    """A NumPy scalar becomes a Python number; anything else is left to the validator."""
    return value.item() if hasattr(value, "item") else value


Number = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A measured number, or None where it could not be measured (NaN and infinity included)."""
Count = Annotated[int, BeforeValidator(_plain)]
MaybeCount = Annotated[int | None, BeforeValidator(_finite_or_none)]


class Record(BaseModel):
    """Base of every record here: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(Record):
    """Where the numbers were taken. `isa` holds names such as "AVX2", "AVX512_VNNI", "AMX_INT8"."""

    cpu: str
    isa: tuple[str, ...] = ()
    threads: MaybeCount = None
    cores: MaybeCount = None
    memory_bytes: MaybeCount = None
    os: str | None = None
    python: str | None = None
    fewbits: str | None = None
    engines: dict[str, str] = {}
    """Engine name to version, e.g. {"onnxruntime": "1.31.0"}."""


class Source(Record):
    """The model that came in. `size_bytes` counts its external data too."""

    path: str | None = None
    sha256: str | None = None
    size_bytes: Count
    format: str | None = None
    params: MaybeCount = None
    opset: MaybeCount = None
    batch_axis: dict[str, Count] = {}
    """Of inputs whose samples do not lie along their first axis: along which."""
    state: dict[str, str] = {}
    """By output, the input of the next step that it feeds."""
    structure: str | None = None
    """Of a module: how its outputs are nested, as :mod:`fewbits.models.torch.structure` writes it."""


class Metric(Record):
    """What quality means here: its name, its direction, and the original's score in `unit`."""

    name: str
    higher_is_better: bool = True
    original: Number = None
    unit: str = ""
    """Written after the number: "%", " dB", or nothing."""
    samples: MaybeCount = None
    description: str | None = None
    """One sentence on how it was computed."""
    against: str | None = None
    """What outputs are compared with, "labels" or "original"; None where a function was given the model."""
    output: str | None = None
    """The output that is scored; None for all of them."""


class Limits(Record):
    """What was asked for, each as the user wrote it ("1%", "0.5", "20MB", "25%", 2.0)."""

    max_drop: str | None = None
    max_size: str | None = None
    min_speedup: Number = None
    prefer: str | None = None
    metric_limit: Number = None
    """`max_drop` resolved: the worst score still allowed, in the metric's unit."""
    size_limit_bytes: MaybeCount = None
    """`max_size` resolved."""
    latency_limit_ms: Number = None
    """`min_speedup` resolved against the reference."""


class Latency(Record):
    """Milliseconds per run: the median and the 10th and 90th percentile."""

    p50: Number = None
    p10: Number = None
    p90: Number = None


class Throughput(Record):
    """Samples per second in batches of one size."""

    batch: Count
    samples_per_s: Number = None
    p50_ms: Number = None
    """Of one batch, milliseconds."""
    error: str | None = None
    """The engine's own first line, where it could not run a batch of that size."""


class Agreement(Record):
    """A candidate's outputs against the original's own in float32, on samples not used to calibrate."""

    top1: Number = None
    """Share of samples with the same largest output, 0 to 1."""
    cosine_min: Number = None
    """Smallest cosine of any sample, -1 to 1."""
    sqnr_db: Number = None
    """Signal to quantization noise, dB; None where the outputs are identical."""


class Candidate(Record):
    """One file in one engine at one precision, measured; or the reason why it could not be."""

    name: str
    """Unique in the report."""
    recipe: str
    """"original" for the model that came in."""
    engine: str
    precision: str | None = None
    """What the engine computes in: "f32", "bf16", "int8"."""
    original: bool = False
    """True for the model that came in, unchanged."""
    path: str | None = None
    """Of the file, relative to the report; None where it was not kept."""
    sha256: str | None = None
    size_bytes: MaybeCount = None
    size_ratio: Number = None
    """`size_bytes` over the source's."""
    latency_ms: Latency = Latency()
    speedup: Number = None
    """Against the original in float32 in the engine that runs it fastest."""
    speedup_low: Number = None
    speedup_high: Number = None
    speedup_vs_bf16: Number = None
    """Against the original in the best engine at bf16, where the CPU has it."""
    speedup_vs_source: Number = None
    """Against the framework the model came from."""
    metric: Number = None
    """Its score, in the metric's unit."""
    drop: Number = None
    """What it lost against the original, in the metric's unit; positive is worse in either direction."""
    agreement: Agreement = Agreement()
    met: bool | None = None
    """Whether it meets every limit; None where that could not be told."""
    failed: tuple[str, ...] = ()
    """Each limit it fails, in words with the distance: "drop 2.1 % is over 1 %"."""
    error: str | None = None
    """The engine's own first line, where it could not be compiled or run."""
    tied: bool = False
    """Its latency is within the tie band of the chosen one's."""
    note: str | None = None
    """Why it was not chosen although it meets the limits, or any other remark."""
    load_ms: Number = None
    """From the file to a session that can run."""
    resident_bytes: MaybeCount = None
    """By how much loading and running a few times made a process grow."""
    throughput: tuple[Throughput, ...] = ()
    """At the batch sizes that were asked for, in that order."""
    threads: MaybeCount = None
    weight_form: str | None = None
    """How weights are written: "QDQ", "Cast+Mul", "float16 initializers + Cast"."""
    folded: str | None = None
    """Set where the engine unfolds or decodes the weights at load: "a folded form saves file, not memory"."""
    settings: dict[str, str] = {}
    """The engine's settings that gave the number."""


class Layer(Record):
    """One layer of the chosen file. `bytes` counts codes, scales and zero points as written."""

    name: str
    op: str
    scheme: str
    """"int8 per channel, int8 activations", or "float32"."""
    bits: Number = None
    """Of one weight's code, without scales."""
    params: MaybeCount = None
    bytes: MaybeCount = None
    weight_sqnr_db: Number = None
    """Weights after against before, dB; None where they are identical."""
    output_sqnr_db: Number = None
    """The layer's output against the original's, dB."""
    shape: tuple[int, ...] | None = None
    why: str | None = None
    """Why it stayed in float, or got more bits than its neighbours."""


class LeftInFloat(Record):
    """Operators that stayed in float, and the reason."""

    op: str
    count: Count
    why: str


class Histogram(Record):
    """One layer's weights before and after, counted in the same bins.

    `edges` has one more entry than `before` and `after`; counts are elements.
    """

    layer: str
    why: str
    """Why this layer is shown: "lowest weight SQNR", say."""
    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @model_validator(mode="after")
    def _bins_match(self) -> Histogram:
        if not len(self.edges) - 1 == len(self.before) == len(self.after):
            raise ValueError(
                f"{len(self.edges)} edges need {len(self.edges) - 1} counts before and after, "
                f"received {len(self.before)} and {len(self.after)}"
            )
        return self


class FallbackStep(Record):
    """Layers raised together: what they cost and what was gained."""

    layers: tuple[str, ...]
    to: str
    """The format of their weights from here on: "fp16" or "float"."""
    error_db: tuple[float, ...] = ()
    """Of each: the error of the model's outputs with it alone quantized, dB; higher is worse."""
    metric: Number = None
    drop: Number = None
    size_bytes: MaybeCount = None


class Fallback(Record):
    """How a file that lost too much was brought back, layer by layer."""

    start: str
    """The candidate that lost too much."""
    candidate: str
    """The candidate that came of it."""
    layers: Count
    """How many layers were quantized at the start."""
    steps: tuple[FallbackStep, ...]


class Damage(Record):
    """What a recipe's rounding does to one layer."""

    recipe: str
    layer: str
    scheme: str
    sqnr_db: Number = None
    """Of the layer's own output, on float inputs; of its weights where nothing was seen of its input. None: exact."""
    output_sqnr_db: Number = None
    """Of the model's outputs with this layer alone rounded, measured in the engine; for a few layers."""
    metric: Number = None
    """The score of that file."""


class Signature(Record):
    """A function of the file beside the main one, which all else is about; what is not known of it is None."""

    name: str
    rounded: bool = False
    """By the chosen recipe; False where it is as it came."""
    metric: Metric | None = None
    score: Number = None
    drop: Number = None
    """What it lost against its own original, in its metric's unit; positive is worse."""
    agreement: Agreement = Agreement()
    original_ms: Number = None
    """The median of the original's, measured in the same rounds."""
    latency_ms: Latency = Latency()
    speedup: Number = None
    layers: tuple[Layer, ...] = ()


class NotTried(Record):
    """A candidate that there was no time for."""

    name: str
    why: str
    """"the time was over", or "interrupted"."""


class Stage(Record):
    """A stage of training: what it took, and what came of it."""

    name: str
    kind: str
    candidate: str | None = None
    """The candidate that is its file."""
    seconds: Number = None
    macs: MaybeCount = None
    """Multiplications of its layers for one sample."""
    params: MaybeCount = None
    sparsity: Number = None
    """The share of its layers' weights that are zero, 0 to 1."""


class File(Record):
    """A file beside the report: its path relative to the report, what it is, its bytes."""

    path: str
    what: str
    size_bytes: MaybeCount = None


class Report(Record):
    """Everything measured in one run of the main job, and the choice."""

    version: Literal[1] = VERSION
    fewbits: str
    created: str | None = None
    """ISO 8601 time; None keeps a report reproducible."""
    machine: Machine
    source: Source
    metric: Metric
    limits: Limits = Limits()
    chosen: str | None = None
    """The candidate that meets every limit and was chosen; None where none does."""
    saved: str | None = None
    """The candidate whose file was handed over: the chosen one, or the best so far where none was."""
    reference: str | None = None
    """The candidate that `speedup` is against: the original in float32 in its fastest engine."""
    verdict: str
    """One sentence."""
    candidates: tuple[Candidate, ...] = ()
    layers: tuple[Layer, ...] = ()
    left_in_float: tuple[LeftInFloat, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    sensitivity: tuple[Damage, ...] = ()
    """Every layer of every recipe that was tried."""
    stages: tuple[Stage, ...] = ()
    """Of training, in their order, the model as it came first; see ``fewbits train``."""
    signatures: tuple[Signature, ...] = ()
    """Beside the main one, where the file has several."""
    bytes_by_dtype: dict[str, Count] = {}
    """The saved file's initializers: bytes per dtype."""
    bytes_by_dtype_original: dict[str, Count] = {}
    histogram: Histogram | None = None
    timings_s: dict[str, Number] = {}
    """Stage to seconds, in order."""
    tie_band: float = 0.03
    """Latencies within this share of each other are ties."""
    latency_at: str | None = None
    """What one run is: "batch 1, input 1x3x224x224, 2 threads"."""
    sample_shapes: dict[str, tuple[int, ...]] = {}
    """The shape of every input in one run, by name."""
    engine_settings: dict[str, str] = {}
    """The settings that gave the saved candidate's numbers."""
    snippet: str | None = None
    """Plain Python that loads the saved file in its engine."""
    files: tuple[File, ...] = ()
    time_budget_s: Number = None
    """After which nothing new was to be tried, seconds."""
    estimated_s: Number = None
    """How long the run was thought to take, seconds; where there is a time budget."""
    interrupted: bool = False
    """Ctrl-C ended it early."""
    not_tried: tuple[NotTried, ...] = ()
    """What was to be tried when it ended early, in that order."""
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_resolve(self) -> Report:
        names = [candidate.name for candidate in self.candidates]
        if len(set(names)) != len(names):
            raise ValueError(f"candidate names must be unique, received {sorted(names)}")
        for key in ("chosen", "saved", "reference"):
            if (name := getattr(self, key)) is not None and name not in names:
                raise ValueError(f"{key} is {name!r}, which is none of the candidates {names}")
        return self

    def candidate(self, name: str) -> Candidate:
        """The candidate called `name`; KeyError where there is none."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes at which throughput was measured, in the order asked for."""
        return tuple(dict.fromkeys(part.batch for one in self.candidates for part in one.throughput))

    @property
    def shown(self) -> Candidate | None:
        """The candidate the report is about: the chosen one, else the one saved as best so far."""
        name = self.chosen if self.chosen is not None else self.saved
        return None if name is None else self.candidate(name)

    @property
    def reference_candidate(self) -> Candidate | None:
        """The candidate that `speedup` is against, where it was measured."""
        return None if self.reference is None else self.candidate(self.reference)

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON text: every key present, keys in the order above, no NaN, no infinity."""
        return self.model_dump_json(indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """The report that `text` holds; keys of a later fewbits that this one does not know are ignored.

        Raises:
            InputError: `text` is not a report of version 1.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            wrong = error.errors()
        try:
            return cls.model_validate(_without(json.loads(text), wrong))
        except (ValueError, TypeError):
            first = next((one for one in wrong if one["type"] != UNKNOWN_KEY), wrong[0])
            where = ".".join(map(str, first["loc"])) or "the text"
            raise InputError(
                f"this is not a fewbits report.json of version {VERSION}: {where}: {first['msg']}"
            ) from None
