"""The contestants that several cases share: the float file in each engine, and what peers make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench import process
from bench.keep import kept, version
from bench.paths import cached
from bench.table import ROW_BY_ROW, THREADS, Entrant, Runnable, file_runnable
from fewbits.engines.cpu import cpu
from fewbits.engines.engine import EngineSettings, get
from fewbits.measure.latency import CallableContestant

ORT = EngineSettings("onnxruntime", "f32", THREADS)

FLOATS = ("ONNX Runtime f32", "OpenVINO f32", "OpenVINO bf16")
"""The float contestants; "float best" is the fastest of them."""
LITERT_F32 = "LiteRT f32"
"""The float contestant among .tflite files."""

NNCF_OPENVINO, NNCF_ONNX = "NNCF int8 (OpenVINO model)", "NNCF int8 (ONNX model)"
NNCF = (NNCF_OPENVINO, NNCF_ONNX)
NNCF_WEIGHTS = "NNCF int8 weights"
ORT_DYNAMIC = "ONNX Runtime dynamic int8"


def floats(source: Callable[[], Path], samples: Path, job: str = ROW_BY_ROW) -> list[Entrant]:
    """The original in ONNX Runtime at f32, which is the reference, and in OpenVINO at f32 and at bf16."""
    settings = (ORT, EngineSettings("openvino", "f32", THREADS), EngineSettings("openvino", "bf16", THREADS))
    return [
        Entrant(
            name, "float", lambda name=name, one=one: file_runnable(name, source(), one, samples, job=job)
        )
        for name, one in zip(FLOATS, settings, strict=True)
    ]


def nncf(
    source: Callable[[], Path], calibration: Callable[[], Path], samples: Path, transformer: bool = False
) -> list[Entrant]:
    """NNCF's static int8, made from the OpenVINO model and from the ONNX model, both run in OpenVINO."""

    def entrant(name: str, maker: str, suffix: str) -> Entrant:
        def make() -> Runnable:
            path = made(
                f"bench.peers:{maker}", suffix, "nncf", source(), calibration(), transformer=transformer
            )
            return file_runnable(name, path, openvino_settings(), samples)

        return Entrant(name, "peer", make)

    return [entrant(NNCF_OPENVINO, "nncf_openvino", ".xml"), entrant(NNCF_ONNX, "nncf_onnx", ".onnx")]


def nncf_weights(source: Callable[[], Path], samples: Path) -> Entrant:
    """NNCF's weight-only int8 in OpenVINO, which then quantizes activations by itself, in groups of 32."""

    def make() -> Runnable:
        path = made("bench.peers:nncf_weights", ".xml", "nncf", source(), None)
        return file_runnable(NNCF_WEIGHTS, path, openvino_settings(activation_group_size=32), samples)

    return Entrant(NNCF_WEIGHTS, "peer", make)


def ort_static(
    source: Callable[[], Path],
    calibration: Callable[[], Path],
    samples: Path,
    method: str,
    operators: list[str] | None = None,
) -> Entrant:
    """ONNX Runtime's static int8 with one of its calibration methods."""
    name = ort_static_name(method)

    def make() -> Runnable:
        path = made(
            "bench.peers:ort_static",
            ".onnx",
            "onnxruntime",
            source(),
            calibration(),
            method=method,
            operators=operators,
        )
        return file_runnable(name, path, ORT, samples)

    return Entrant(name, "peer", make)


def ort_static_name(method: str) -> str:
    """What `ort_static` calls its entrant."""
    return f"ONNX Runtime static int8, {method}"


def ort_dynamic(source: Callable[[], Path], samples: Path, job: str = ROW_BY_ROW) -> Entrant:
    """ONNX Runtime's dynamic int8."""

    def make() -> Runnable:
        path = made("bench.peers:ort_dynamic", ".onnx", "onnxruntime", source(), None)
        return file_runnable(ORT_DYNAMIC, path, ORT, samples, job=job)

    return Entrant(ORT_DYNAMIC, "peer", make)


def torch_minilm(
    name: str, variant: str, package: str, calibration: Callable[[], Path], samples: Path
) -> Entrant:
    """MiniLM in PyTorch, in one of the variants of `bench.torch_peers`."""

    def make() -> Runnable:
        arguments = {"variant": variant, "calibration": str(calibration()), "threads": THREADS}
        outputs = kept(
            "outputs",
            f"minilm-{variant}",
            ".npy",
            (samples, calibration()),
            variant=variant,
            version=version(package),
        )
        done = outputs.with_suffix(".json")
        if not done.is_file():
            size = process.call(
                "bench.torch_peers:outputs", **arguments, samples=str(samples), out=str(outputs)
            ).value
            done.write_text(str(size))
        contestant = CallableContestant(
            name, "bench.torch_peers:timed", {**arguments, "sample": str(samples)}
        )
        return Runnable(contestant, int(done.read_text()), outputs)

    role = "float" if variant == "float" else "peer"
    return Entrant(name, role, make)


def fewbits(
    name: str,
    recipe: str,
    source: Callable[[], Path],
    calibration: Callable[[], Path],
    samples: Path,
    max_drop: str = "1%",
    state: Mapping[str, str] | None = None,
    job: str = ROW_BY_ROW,
) -> Entrant:
    """What fewbits hands over for one recipe, in the engine and at the precision that it names."""

    def make() -> Runnable:
        done = process.call(
            "bench.ours:compress",
            source=str(source()),
            calibration=str(calibration()),
            recipe=recipe,
            max_drop=max_drop,
            out=str(cached(f"fewbits/{source().stem}-{recipe}")),
            state=state,
        )
        handed = done.value
        settings = EngineSettings(**handed["settings"])
        runnable = file_runnable(name, Path(handed["path"]), settings, samples, handed["note"], job)
        return replace(runnable, peak_bytes=done.peak_bytes)

    return Entrant(name, "fewbits", make)


def refusal(source: Callable[[], Path], calibration: Callable[[], Path], precision: str) -> list[str]:
    """Why fewbits does not choose the original at that precision: its report's reasons, none if it would."""
    return process.call(
        "bench.ours:refusal",
        source=str(source()),
        calibration=str(calibration()),
        precision=precision,
        out=str(cached(f"fewbits/{source().stem}-auto")),
    ).value


def inference_peak(source: Path, samples: Path) -> int:
    """The most bytes that a process has in memory while ONNX Runtime runs a float file in it on samples, one by one."""
    out = cached("outputs/inference_peak.npy")
    return process.call(
        ROW_BY_ROW, path=str(source), settings=asdict(ORT), samples=str(samples), out=str(out)
    ).peak_bytes


def openvino_settings(**settings: Any) -> EngineSettings:
    """OpenVINO with the float precision it takes by itself on this CPU."""
    precisions = get("openvino").precisions(cpu())
    return EngineSettings("openvino", "bf16" if "bf16" in precisions else "f32", THREADS, **settings)


def made(
    maker: str, suffix: str, package: str, source: Path, calibration: Path | None, **arguments: Any
) -> Path:
    """The file that "module:function" makes of these files, made once per version of its package."""
    files = (source,) if calibration is None else (source, calibration)
    stem = f"{source.stem}-{maker.rpartition(':')[2]}"
    path = kept("peers", stem, suffix, files, version=version(package), arguments=arguments)
    if not path.is_file():
        if calibration is not None:
            arguments["calibration"] = str(calibration)
        partial = path.with_name("partial-" + path.name)
        process.call(maker, source=str(source), out=str(partial), **arguments)
        if suffix == ".xml":
            partial.with_suffix(".bin").rename(path.with_suffix(".bin"))
        partial.rename(path)
    return path
