"""Reports of realistic shape and values, from one candidate to the largest a run can give."""

from __future__ import annotations

import numpy as np

from fewbits.report.histogram import histogram
from fewbits.report.record import (
    Agreement,
    Candidate,
    File,
    Histogram,
    Latency,
    Layer,
    LeftInFloat,
    Limits,
    Machine,
    Metric,
    NotTried,
    Report,
    Source,
    Throughput,
)

SOURCE_BYTES = 90_712_345
MACHINE = Machine(
    cpu="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
    isa=("AVX2", "AVX512_VNNI", "AMX_INT8", "AMX_BF16"),
    threads=2,
    cores=2,
    memory_bytes=16_760_000_000,
    os="Linux 6.1",
    python="3.11.2",
    fewbits="0.1.0",
    engines={"onnxruntime": "1.31.0", "openvino": "2026.4.0"},
)
METRIC = Metric(
    name="same nearest neighbour",
    original=99.4,
    unit="%",
    samples=2000,
    description="Share of paragraphs whose nearest neighbour among the others is the same as in fp32.",
)
SNIPPET = """\
import openvino as ov

core = ov.Core()
settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
model = core.compile_model("model.onnx", "CPU", settings)
outputs = model({"input_ids": input_ids, "attention_mask": attention_mask})
"""


def candidate(
    name: str,
    engine: str,
    precision: str,
    size_bytes: int | None,
    p50: float | None,
    metric: float | None,
    *,
    reference_ms: float = 11.9,
    **rest: object,
) -> Candidate:
    """A candidate with the derived values filled in the way a run fills them."""
    speedup = None if p50 is None else reference_ms / p50
    values: dict[str, object] = {
        "name": name,
        "recipe": "original" if rest.get("original") else name.split(" ")[0],
        "engine": engine,
        "precision": precision,
        "size_bytes": size_bytes,
        "size_ratio": None if size_bytes is None else size_bytes / SOURCE_BYTES,
        "latency_ms": Latency(p50=p50, p10=p50 and p50 * 0.97, p90=p50 and p50 * 1.06),
        "speedup": speedup,
        "speedup_low": speedup and speedup * 0.96,
        "speedup_high": speedup and speedup * 1.03,
        "speedup_vs_bf16": p50 and 3.7 / p50,
        "metric": metric,
        "drop": None if metric is None else METRIC.original - metric,  # type: ignore[operator]
        "met": True,
        "load_ms": 412.0,
        "resident_bytes": 301_000_000,
        "threads": 2,
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "path": f"candidates/{name.replace(' ', '-')}.onnx",
    }
    return Candidate.model_validate(values | rest)


def candidates() -> tuple[Candidate, ...]:
    """What a run on MiniLM tries: originals, weight-only, static, dynamic; some fail, one cannot run."""
    ort, ov = "onnxruntime", "openvino"
    slow = "speedup 0.54× is under 2×"
    return (
        candidate(
            "original ORT f32",
            ort,
            "f32",
            SOURCE_BYTES,
            13.6,
            99.4,
            original=True,
            met=False,
            failed=("size 100 % is over 30 %", "speedup 0.88× is under 2×"),
            weight_form="float32",
        ),
        candidate(
            "original OV f32",
            ov,
            "f32",
            SOURCE_BYTES,
            11.9,
            99.4,
            original=True,
            met=False,
            failed=("size 100 % is over 30 %", "speedup 1.00× is under 2×"),
            weight_form="float32",
        ),
        candidate(
            "original OV bf16",
            ov,
            "bf16",
            SOURCE_BYTES,
            3.70,
            98.9,
            original=True,
            met=False,
            failed=("size 100 % is over 30 %",),
            weight_form="float32",
            agreement=Agreement(top1=0.981, cosine_min=0.9985, sqnr_db=31.2),
        ),
        candidate(
            "w8 OV bf16",
            ov,
            "bf16",
            22_900_000,
            3.62,
            98.85,
            weight_form="Cast+Mul",
            tied=True,
            agreement=Agreement(top1=0.979, cosine_min=0.9981, sqnr_db=30.4),
            folded="a folded form saves file, not memory",
            note="tied in speed; the chosen one keeps more quality",
        ),
        candidate(
            "w8 ORT f32",
            ort,
            "f32",
            22_900_000,
            11.9,
            99.2,
            weight_form="Cast+Mul",
            met=False,
            agreement=Agreement(top1=0.992, cosine_min=0.9993, sqnr_db=36.0),
            failed=("speedup 1.00× is under 2×",),
            folded="a folded form saves file, not memory",
        ),
        candidate(
            "w8a8 OV",
            ov,
            "int8",
            23_400_000,
            3.31,
            96.2,
            weight_form="QDQ",
            met=False,
            agreement=Agreement(top1=0.931, cosine_min=0.9952, sqnr_db=21.9),
            failed=("drop 3.2 % is over 1 %",),
        ),
        candidate(
            "w8a8-mse OV",
            ov,
            "int8",
            23_400_000,
            3.58,
            99.1,
            weight_form="QDQ",
            agreement=Agreement(top1=0.962, cosine_min=0.9978, sqnr_db=26.1),
            settings={"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "2"},
        ),
        candidate(
            "w8a8 ORT",
            ort,
            "int8",
            23_400_000,
            6.5,
            96.1,
            weight_form="QDQ",
            met=False,
            agreement=Agreement(top1=0.929, cosine_min=0.9951, sqnr_db=21.8),
            failed=("drop 3.3 % is over 1 %", "speedup 1.83× is under 2×"),
        ),
        candidate(
            "w8a8_dynamic ORT",
            ort,
            "int8",
            23_100_000,
            7.3,
            98.0,
            weight_form="DynamicQuantizeLinear",
            met=False,
            agreement=Agreement(top1=0.957, cosine_min=0.9967, sqnr_db=24.0),
            failed=("drop 1.4 % is over 1 %", "speedup 1.63× is under 2×"),
        ),
        candidate(
            "w4_g32 OV",
            ov,
            "bf16",
            14_800_000,
            4.9,
            81.3,
            weight_form="QDQ",
            met=False,
            agreement=Agreement(top1=0.79, cosine_min=0.961, sqnr_db=14.2),
            failed=("drop 18.2 % is over 1 %",),
        ),
        candidate(
            "w4_g32 ORT",
            ort,
            "f32",
            14_800_000,
            22.0,
            81.6,
            weight_form="QDQ",
            met=False,
            agreement=Agreement(top1=0.792, cosine_min=0.962, sqnr_db=14.3),
            failed=("drop 17.9 % is over 1 %", slow),
        ),
        candidate(
            "fp16 ORT",
            ort,
            "f32",
            45_500_000,
            13.7,
            99.4,
            weight_form="float16 initializers + Cast",
            met=False,
            failed=("size 50 % is over 30 %", "speedup 0.87× is under 2×"),
        ),
        candidate(
            "w8a8_dynamic OV",
            ov,
            "int8",
            23_100_000,
            None,
            None,
            met=None,
            load_ms=None,
            resident_bytes=None,
            error="Exception from src/inference/src/cpp/core.cpp:134: "
            "Check 'false' failed: no kernel for DynamicQuantizeLinear",
        ),
    )


def layers(number: int = 42, prefix: str = "encoder.layer") -> tuple[Layer, ...]:
    """Layers of a transformer, embeddings in front; every eleventh stays in float."""
    draw = np.random.default_rng(7)
    made = [
        Layer(
            name="embeddings.word_embeddings",
            op="Gather",
            scheme="int8 per row",
            bits=8,
            params=11_720_000,
            bytes=11_840_000,
            weight_sqnr_db=39.8,
            output_sqnr_db=39.7,
            shape=(30522, 384),
        ),
    ]
    parts = ("attention.query", "attention.key", "attention.value", "attention.out", "up", "down")
    for index in range(number - 1):
        part = parts[index % 6]
        params = 384 * 1536 if part in ("up", "down") else 384 * 384
        kept = index % 11 == 10
        made.append(
            Layer(
                name=f"{prefix}.{index // 6}.{part}",
                op="MatMul" if not kept else "Gemm",
                scheme="float32" if kept else "int8 per channel, uint8 activations",
                bits=32 if kept else 8,
                params=params,
                bytes=params * 4 if kept else params + 4 * 384,
                weight_sqnr_db=None if kept else float(draw.normal(41, 1.5)),
                output_sqnr_db=float(draw.normal(33, 4)) - (9 if index == 17 else 0),
                shape=(384, params // 384),
                why="excluded by --exclude" if kept else None,
            )
        )
    return tuple(made)


def weights(layer: str, bits: int = 8) -> Histogram:
    """A heavy-tailed layer rounded to `bits` bits."""
    draw = np.random.default_rng(3)
    before = draw.standard_t(6, size=384 * 1536) * 0.04
    top = 2 ** (bits - 1) - 1
    scale = np.quantile(np.abs(before), 0.99995) / top
    after = np.clip(np.round(before / scale), -top, top) * scale
    return histogram(layer, before, after, why="lowest output SQNR of all layers")


def full(**changes: object) -> Report:
    """A report on MiniLM where one candidate meets every limit."""
    values: dict[str, object] = {
        "fewbits": "0.1.0",
        "created": "2026-01-15T10:42:00+00:00",
        "machine": MACHINE,
        "source": Source(
            path="minilm.onnx",
            size_bytes=SOURCE_BYTES,
            format="ONNX",
            params=22_565_376,
            opset=18,
            sha256="2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
        ),
        "metric": METRIC,
        "limits": Limits(
            max_drop="1%",
            max_size="30%",
            min_speedup=2.0,
            prefer="speed",
            metric_limit=98.406,
            size_limit_bytes=27_213_703,
            latency_limit_ms=5.95,
        ),
        "chosen": "w8a8-mse OV",
        "saved": "w8a8-mse OV",
        "reference": "original OV f32",
        "verdict": "Ship w8a8-mse on OpenVINO: a quarter of the bytes, 3.3 times as fast as "
        "the original's best engine, and 0.3 points of agreement lost.",
        "candidates": candidates(),
        "layers": layers(),
        "left_in_float": (
            LeftInFloat(
                op="Softmax", count=6, why="the engine computes it in float; int8 would only add conversions"
            ),
            LeftInFloat(op="LayerNormalization", count=13, why="no int8 kernel in this engine"),
            LeftInFloat(op="Gemm", count=3, why="excluded by --exclude 'encoder.layer.*.up'"),
        ),
        "bytes_by_dtype": {"int8": 21_900_000, "float32": 1_380_000, "int32": 92_000, "uint8": 1_024},
        "bytes_by_dtype_original": {"float32": 90_400_000, "int64": 4_104},
        "histogram": weights("encoder.layer.2.down"),
        "timings_s": {
            "load": 0.84,
            "observe": 3.2,
            "plan": 0.21,
            "write": 2.7,
            "measure": 41.5,
            "report": 0.3,
        },
        "latency_at": "batch 1, input_ids 1x128, attention_mask 1x128, 2 threads",
        "sample_shapes": {"input_ids": (1, 128), "attention_mask": (1, 128)},
        "engine_settings": {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": "2",
            "PERFORMANCE_HINT": "LATENCY",
        },
        "snippet": SNIPPET,
        "files": (
            File(path="model.onnx", what="the compressed model", size_bytes=23_400_000),
            File(
                path="recipe.toml",
                what="the resolved recipe; running it again gives the same bytes",
                size_bytes=1_240,
            ),
            File(path="report.json", what="everything on this page, for machines", size_bytes=41_900),
        ),
        "notes": ("bf16 was not chosen: the original in bf16 meets the drop limit but not --max-size.",),
    }
    return Report.model_validate(values | changes)


def batched() -> Report:
    """Throughput was measured too; one candidate cannot run the largest batch, another not at all."""

    def rates(one: Candidate) -> tuple[Throughput, ...]:
        p50 = one.latency_ms.p50
        if p50 is None:
            return ()
        found = [
            Throughput(batch=n, samples_per_s=1e3 * n**0.3 / p50, p50_ms=p50 * n**0.7) for n in (1, 8, 32)
        ]
        if one.name == "w4_g32 ORT":
            found[2] = Throughput(batch=32, error="onnxruntime cannot run w4.onnx: bad allocation")
        return tuple(found)

    every = tuple(one.model_copy(update={"throughput": rates(one)}) for one in candidates())
    return full(candidates=every)


def ended_early() -> Report:
    """Ctrl-C ended it when four candidates had been tried."""
    every = candidates()
    chosen = next(one.name for one in every if one.met)
    return full(
        candidates=every[:4],
        chosen=chosen,
        saved=chosen,
        time_budget_s=600.0,
        estimated_s=712.0,
        interrupted=True,
        not_tried=tuple(NotTried(name=one.name, why="interrupted") for one in every[4:]),
        notes=("ended early: interrupted; 4 candidates were tried, and 9 were not",),
    )


def unmet() -> Report:
    """Nothing meets the limits: the best so far was saved."""
    every = tuple(
        one.model_copy(
            update={"met": False, "failed": (*one.failed, f"speedup {one.speedup or 0:.2f}× is under 4×")}
        )
        if one.error is None
        else one
        for one in candidates()
    )
    return full(
        chosen=None,
        saved="w8a8-mse OV",
        candidates=every,
        limits=Limits(max_drop="1%", min_speedup=4.0, prefer="speed", metric_limit=98.406),
        verdict="No candidate meets the limits. The best so far, w8a8-mse on OpenVINO, is saved: "
        "it is 3.32 times as fast where 4 was asked.",
    )


def float_kept() -> Report:
    """The verdict is to keep the float file and run it in bf16."""
    return full(
        chosen="original OV bf16",
        saved="original OV bf16",
        limits=Limits(max_drop="1%", prefer="speed", metric_limit=98.406),
        verdict="Keep the float file and run it in OpenVINO at bf16: nothing smaller was faster.",
        histogram=None,
        layers=(),
        bytes_by_dtype={"float32": 90_400_000, "int64": 4_104},
        left_in_float=(),
    )


def smallest() -> Report:
    """Hardly anything is known: one candidate, no score, no layers."""
    only = Candidate(name="original", recipe="original", engine="onnxruntime", original=True)
    return Report(
        fewbits="0.1.0",
        machine=Machine(cpu="unknown"),
        source=Source(size_bytes=0),
        metric=Metric(name="top-1"),
        verdict="There was nothing to compress.",
        candidates=(only,),
    )


def largest(name: str = "x" * 80) -> Report:
    """60 candidates on four engines and 400 layers whose names are 80 characters long."""
    draw = np.random.default_rng(11)
    engines = ("onnxruntime", "openvino", "torch", "litert")
    many = [
        candidate(
            f"{name[:40]} {index:02d}",
            engines[index % 4],
            "int8",
            int(draw.integers(9e6, 9e7)),
            float(draw.uniform(2, 30)),
            float(99.4 - draw.exponential(1.5)),
            met=bool(index % 3),
            failed=() if index % 3 else ("drop 2.2 % is over 1 %",),
        )
        for index in range(59)
    ]
    first = candidate("original", "openvino", "f32", SOURCE_BYTES, 11.9, 99.4, original=True)
    shape = tuple(
        layer.model_copy(update={"name": f"{index:03d}.{name}"[:80]})
        for index, layer in enumerate(layers(400))
    )
    return full(
        candidates=(first, *many),
        layers=shape,
        chosen=many[1].name,
        saved=many[1].name,
        reference="original",
        histogram=weights(shape[7].name, bits=4),
    )
