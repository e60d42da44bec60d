"""A sharded checkpoint of 2 GB to 4 bits in groups of 128: `python -m bench.modules checkpoint`.

Peak memory and time of the whole way, from the directory to the finished one, beside copying its files and beside what
loads the model to quantize it.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.case import Case, Tell
from bench.keep import version
from bench.paths import MissingError, cached
from bench.process import Done, JobError, call
from bench.table import THREADS, CaseResult, Check, Column, Role, Row, Rows

ROUNDS = 3
RECIPE = "w4_g128"
COPY, QUANTO, FEWBITS = "copying the files", "quanto int4", f"fewbits {RECIPE}"
EXTREMES = "fewbits, from extremes"
OWN = """name = "extremes"
[[rules]]
match = "Linear"
weights = {qtype = "int4", per = "group", group_size = 128, range = "minmax"}
"""
MEMORY_LIMIT_MB = 1200.0
SPEED_LIMIT = 0.3
COLUMNS = (
    Column("seconds", "seconds, fastest", "{:.2f}"),
    Column("slowest", "slowest", "{:.2f}"),
    Column("speed", "of copying's speed", "{:.2f}"),
    Column("written", "MB written", "{:.0f}"),
    Column("peak", "peak MB over torch", "{:.0f}"),
    Column("sqnr", "SQNR of weights, dB", "{:.2f}"),
)

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
SHARDS = 4


def measure(tell: Tell) -> CaseResult:
    """See `Case.measure`."""
    tell("making the checkpoint")
    source = checkpoint()
    size = _bytes(source)
    base = call("bench.cases.checkpoint:nothing").peak_bytes
    jobs = {name: f"bench.cases.checkpoint:{job}" for name, job in JOBS.items()}
    done: dict[str, list[Done]] = {name: [] for name in jobs}
    errors: dict[str, str] = {}
    for number in range(ROUNDS):
        for name, job in jobs.items():
            if name in errors or (name == QUANTO and number):
                continue
            tell(f"{name}, round {number + 1}")
            out = cached(f"checkpoint/{name.replace(' ', '-')}")
            shutil.rmtree(out, ignore_errors=True)
            try:
                done[name].append(call(job, source=str(source), out=str(out)))
            except (MissingError, JobError) as error:
                errors[name] = str(error)
            finally:
                shutil.rmtree(out, ignore_errors=True)
    if COPY in errors:
        raise JobError(errors[COPY])
    rows = Rows([_row(name, done[name], errors.get(name), base, done[COPY]) for name in jobs])
    setting = (
        f"{size / 1e9:.2f} GB in {SHARDS} shards, bfloat16, normal random numbers; {THREADS} threads; every run in a "
        "process of its own, in turn. Imports are not counted in the time, and torch's are not in the memory. When a "
        "run begins the files are in the page cache and what was written before is on the disk; none flushes what it "
        "writes. What numba compiles at the first run it keeps. Copying is shutil.copytree into the same folder. Where "
        "memory is short the system makes writers wait for the disk, copying most of all, so the fastest of the rounds "
        "are compared. Ranges are searched for the "
        "least squared error, or taken from the extremes."
    )
    return CaseResult(CASE.name, CASE.title, setting, COLUMNS, rows.rows, _checks(rows))


def _checks(rows: Rows) -> tuple[Check, ...]:
    memory = "peak memory over the interpreter with torch, MB"
    return (
        rows.score_check(memory, FEWBITS, "peak", lambda: MEMORY_LIMIT_MB, "at most"),
        _speed(rows, FEWBITS),
        _speed(rows, EXTREMES),
    )


def _speed(rows: Rows, name: str) -> Check:
    return rows.score_check(f"{name}: of copying's speed", name, "speed", lambda: SPEED_LIMIT, "at least")


def _row(name: str, done: list[Done], error: str | None, base: int, copied: list[Done]) -> Row:
    role: Role = "fewbits" if name in (FEWBITS, EXTREMES) else "peer"
    if error:
        return Row(name, role, error=error)
    seconds = [one.value["seconds"] for one in done]
    scores = {
        "seconds": min(seconds),
        "slowest": max(seconds),
        "speed": min(one.value["seconds"] for one in copied) / min(seconds),
        "written": done[0].value["bytes"] / 1e6,
        "peak": (max(one.peak_bytes for one in done) - base) / 1e6,
    }
    if name == COPY:
        del scores["peak"]
    if "sqnr" in done[0].value:
        scores["sqnr"] = done[0].value["sqnr"]
    return Row(name, role, scores=scores)


def checkpoint() -> Path:
    """The directory, made once: as transformers would save it, shard by shard."""
    folder = cached("checkpoint/source")
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        call("bench.cases.checkpoint:make", folder=str(folder))
    return folder


def make(folder: str) -> None:
    """Write the checkpoint; its index comes last."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    shapes = list(_shapes())
    each = -(-len(shapes) // SHARDS)
    weight_map: dict[str, str] = {}
    total = 0
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = {
            name: torch.randn(shape, generator=generator).mul_(0.02).bfloat16()
            for name, shape in shapes[number * each : (number + 1) * each]
        }
        save_file(tensors, Path(folder) / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(value.nbytes for value in tensors.values())
    (Path(folder) / "config.json").write_text(json.dumps(LLAMA, indent=1), encoding="utf-8")
    document = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (Path(folder) / "model.safetensors.index.json").write_text(json.dumps(document), encoding="utf-8")


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, words = LLAMA["hidden_size"], LLAMA["intermediate_size"], LLAMA["vocab_size"]
    keys = hidden // LLAMA["num_attention_heads"] * LLAMA["num_key_value_heads"]
    yield "model.embed_tokens.weight", (words, hidden)
    for layer in range(LLAMA["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, rows in (("q_proj", hidden), ("k_proj", keys), ("v_proj", keys), ("o_proj", hidden)):
            yield f"{at}.self_attn.{name}.weight", (rows, hidden)
        yield f"{at}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{at}.mlp.up_proj.weight", (inner, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, inner)
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (words, hidden)


# --- what runs in a process of its own: each gives its seconds and the bytes it wrote --------------------------------


def nothing() -> None:
    """An interpreter with torch: what memory is counted over."""
    import torch  # noqa: F401


def copy(source: str, out: str) -> dict[str, float]:
    """Copy the directory."""
    return _timed(lambda: shutil.copytree(source, out), source, out)


def quanto(source: str, out: str) -> dict[str, float]:
    """Load the model, quantize it in groups of 128 and save it, with optimum-quanto."""
    version("optimum-quanto")
    import torch
    from optimum.quanto import QuantizedModelForCausalLM, qint4
    from transformers import LlamaForCausalLM

    torch.set_num_threads(THREADS)

    def work() -> None:
        model = LlamaForCausalLM.from_pretrained(source)
        QuantizedModelForCausalLM.quantize(model, weights=qint4, exclude="lm_head").save_pretrained(out)

    return _timed(work, source, out)


def fewbits(source: str, out: str, recipe: str = RECIPE) -> dict[str, float]:
    """The same with fewbits, from the directory to the finished one with its report."""
    import numba  # noqa: F401
    import torch  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    from fewbits import compress

    done = _timed(lambda: compress(source, recipe=recipe, threads=THREADS, out=out), source, out)
    report = json.loads((Path(out) / "report.json").read_text(encoding="utf-8"))
    found = [layer["weight_sqnr_db"] for layer in report["layers"] if layer["weight_sqnr_db"] is not None]
    return {**done, "sqnr": statistics.median(found)}


def extremes(source: str, out: str) -> dict[str, float]:
    """The same in a recipe of one's own: ranges from minimum and maximum."""
    own = Path(out).with_suffix(".toml")
    own.write_text(OWN, encoding="utf-8")
    return fewbits(source, out, str(own))


JOBS = {COPY: "copy", QUANTO: "quanto", FEWBITS: "fewbits", EXTREMES: "extremes"}


def _timed(work: Callable[[], object], source: str, out: str) -> dict[str, float]:
    for file in Path(source).iterdir():
        with file.open("rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass
    os.sync()
    start = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - start, "bytes": _bytes(Path(out))}


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


CASE = Case("checkpoint", "A checkpoint of 2 GB to 4 bits in groups of 128", measure)
