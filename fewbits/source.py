"""What the user gave as a model: the path of a file, or a PyTorch module that is made into one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbits.distance import distance
from fewbits.engines.cpu import cpu
from fewbits.engines.engine import EngineSettings, Session, available
from fewbits.errors import EngineError, InputError, VerificationError
from fewbits.feeding import PLAIN, Feeding
from fewbits.from_keras import from_keras, is_keras
from fewbits.named import describe, is_named
from fewbits.origin import Origin
from fewbits.planning.model_info import TensorInfo
from fewbits.samples import Feeds, Samples, open_samples, peek
from fewbits.threads import one_torch_thread

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from fewbits.models.torch.structure import Structure

Arch = str | Callable[[], Any]

EXAMPLE_SIZES = (3, 2, 1)  # of a batch, tried in turn: with one sample an exporter takes the axis for fixed
LARGEST_EXAMPLE = 256  # a batch as it comes is tried too where it has no more samples
COMPARED_SAMPLES = 8


def open_source(
    model: Any,
    arch: Arch | None,
    data: Any,
    eval: Any,
    folder: Path,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    feeding: Feeding = PLAIN,
    to: str = "auto",
) -> tuple[Path, Origin | None]:
    """The path of the file to compress; what is none is exported into ``folder`` and compared with the file.

    Args:
        model: a path, ``module:factory``, an ``nn.Module``, or a Keras model.
        arch: what makes the module that the weights of a ``.safetensors`` are for.
        data, eval: the samples of :func:`fewbits.compress.compress`, the first of which are the example.
        folder: for the files.
        progress: told that a module is being exported.
        feeding: for files only.
        to: the format of the file: ``onnx``, ``tflite``, or ``auto`` for the model's own.

    Raises:
        InputError: a format that the model cannot have; no such module, one that cannot be exported, or nothing to run
            it on.
        VerificationError: the exported file does not compute what the module does.
    """
    if is_keras(model):
        progress("export", 0, 0)
        return from_keras(model, "onnx" if to == "onnx" else "tflite", folder)
    name, module = _module(model, arch)
    if module is None:
        path = Path(model)
        if to != "auto" and path.suffix in (".onnx", ".tflite") and path.suffix != f".{to}":
            raise InputError(
                f"{path}: files are not converted to .{to}; give the model that it was made from, or an engine that "
                f"runs {path.suffix}"
            )
        return path, None
    what = str(model) if isinstance(model, (str, Path)) else name
    if feeding.state or feeding.batch_axis:
        raise InputError(
            f"{what}: state and batch axes are for models in files; export the module (torch.onnx.export(..., "
            "dynamo=True)), and give the .onnx file"
        )
    progress("export", 0, 0)
    with one_torch_thread():
        return _exported(module, name, what, data, eval, folder, "tflite" if to == "tflite" else "onnx")


def _module(model: Any, arch: Arch | None) -> tuple[str, nn.Module | None]:
    """A name for files and the module; None for a file."""
    if isinstance(model, (str, Path)):
        from fewbits.models.torch.factory import make, with_weights

        path = Path(model)
        if path.suffix == ".safetensors":
            return path.stem, with_weights(path, arch)
        if arch is not None:
            raise InputError(f"{model}: arch names the model for a .safetensors file; leave it out here")
        return (str(model).rpartition(":")[2], make(str(model))) if is_named(str(model)) else ("", None)
    import torch

    if not isinstance(model, torch.nn.Module):
        raise InputError(
            f"model is a {type(model).__name__}; give an nn.Module, a Keras model, or the path of a file"
        )
    if arch is not None:
        raise InputError("arch names the model for a .safetensors file; a module has its weights already")
    return type(model).__name__, model


def _exported(
    module: nn.Module, name: str, what: str, data: Any, eval: Any, folder: Path, to: str
) -> tuple[Path, Origin]:
    from fewbits.models.torch.export import at_rest, check_module, save_program

    check_module(module, what)
    samples, natural = _samples(module, what, data if data is not None else eval)
    path, program_path = folder / f"{name.rpartition('.')[2]}.{to}", folder / "original.pt2"
    with at_rest(module):
        feeds, structure = _example(module, what, samples, natural)
        program, note = _compared(module, what, samples, feeds, structure, path)
        save_program(program, program_path)
    notes = () if note is None else (note,)
    return path, Origin(Path(what).name, "pytorch", program_path, structure, notes)


def _samples(module: nn.Module, what: str, data: Any) -> tuple[Samples, int]:
    """The data as a stream for forward's inputs, and how many samples a batch has as it comes."""
    from fewbits.models.torch.export import BATCH, forward_of

    if data is None:
        raise InputError(
            f"{what}: a module is exported by running it on an example; give samples: --data FILE, or "
            "fb.compress(module, data)"
        )
    forward = forward_of(module, what)
    called = str(data) if isinstance(data, (str, Path)) else "data"
    first = peek(data, forward.unlabelled, called)
    inputs = []
    for name in forward.in_order(tuple(first), called):
        array = first[name]
        if not array.ndim:
            raise InputError(
                f"{what}: its input {name!r} is a scalar; make it a constant in the module, or give an .onnx file"
            )
        dtype = "float32" if array.dtype.kind == "f" else array.dtype.name
        inputs.append(TensorInfo(name, dtype, (BATCH, *array.shape[1:])))
    return open_samples(data, tuple(inputs), called), max(map(len, first.values()))


def _example(module: nn.Module, what: str, samples: Samples, natural: int) -> tuple[Feeds, Structure]:
    """A few samples that forward takes, in one batch, and what it gives for them.

    Raises:
        InputError: forward fails for any number of samples, gives something else than tensors, or is not the same
            function the second time.
    """
    from fewbits.models.torch.export import changed_buffer, run
    from fewbits.models.torch.structure import structure_of

    before = {name: value.clone() for name, value in module.named_buffers()}
    failed: tuple[Exception, Feeds] | None = None
    for size in (*EXAMPLE_SIZES, *((natural,) if natural <= LARGEST_EXAMPLE else ())):
        feeds = samples.first(size)
        try:
            outputs = run(module, feeds)
            again = run(module, feeds)
        except Exception as error:
            failed = failed or (error, feeds)
            continue
        structure = structure_of(outputs, tuple(feeds), what)
        if (changed := changed_buffer(module, before)) is not None:
            raise InputError(
                f"{what}: its forward changes its buffer {changed!r}; a file has no state: take it as an input and "
                "give it as an output"
            )
        one, two = structure.take_apart(outputs), structure.take_apart(again)
        if any(not bool((a == b)[a == a].all()) for a, b in zip(one.values(), two.values(), strict=True)):
            raise InputError(
                f"{what}: gives other outputs for the same inputs each time, in eval mode as well"
            )
        return feeds, structure
    assert failed is not None
    first, feeds = failed
    shapes = ", ".join(f"{name} {list(array.shape)} {array.dtype}" for name, array in feeds.items())
    raise InputError(f"{what}: its forward raised {describe(first)} on samples of {samples.name} ({shapes})")


def _compared(
    module: nn.Module, what: str, samples: Samples, feeds: Feeds, structure: Structure, path: Path
) -> tuple[ExportedProgram, str | None]:
    """Exported for any number of samples at a time, or where that is not possible for one number, with a note."""
    from fewbits.models.torch.export import export, run, takes_any_batch, write_onnx
    from fewbits.models.torch.litert import write_tflite

    size = _count(feeds)
    to_onnx = path.suffix == ".onnx"
    write = write_onnx if to_onnx else write_tflite
    why = "torch.export recorded what its forward does for that number only"
    if not to_onnx:
        why = "LiteRT's converter fixes it"
    elif size > 1:
        program = export(module, feeds, what, dynamic=True)
        if takes_any_batch(program):
            write(program, path, tuple(feeds), structure.tensors, what)
            several = samples.first(COMPARED_SAMPLES)
            parts = [_part(several, 0, size), _part(several, size, None), _part(several, 0, 1)]
            different = _difference(module, what, path, parts, structure)
            if different is None:
                return program, None
            if _difference(module, what, path, parts[:1], structure) is not None:
                raise VerificationError(different)
            why = "for other numbers the exported file gives other outputs than the module"
    one = _part(feeds, 0, 1)
    try:
        run(module, one)
        feeds = one
    except Exception:  # whatever it is: one sample at a time is not what this forward takes
        why = "its forward takes no other number"
    program = export(module, feeds, what, dynamic=False)
    write(program, path, tuple(feeds), structure.tensors, what)
    size = _count(feeds)
    parts = [part for part, _ in zip(_batches(samples, size), range(COMPARED_SAMPLES), strict=False)]
    if (different := _difference(module, what, path, parts, structure)) is not None:
        raise VerificationError(different)
    return program, f"exported for {size} sample{'s' if size > 1 else ''} at a time: {why}"


def _batches(samples: Samples, size: int) -> Any:
    return (feeds for feeds, _ in samples.batches(size) if _count(feeds) == size)


def _difference(
    module: nn.Module, what: str, path: Path, parts: list[Feeds], structure: Structure
) -> str | None:
    """The first output of the file that is not the module's, in one line; None where all are."""
    from fewbits.models.torch.export import run

    session = _session(what, path)
    for feeds in parts:
        if not _count(feeds):
            continue
        try:
            expected = structure.take_apart(run(module, feeds))
            got = session.run(feeds)
        except Exception as error:
            return f"{what}: exported, it cannot run {_count(feeds)} samples: {error}"
        for name, tensor in expected.items():
            far = distance(tensor.numpy(), got[name])
            if far is not None:
                return (
                    f"{what}: output {name!r} of the exported file is not the module's, for {_count(feeds)} samples: "
                    f"{far}"
                )
    return None


def _session(what: str, path: Path) -> Session:
    """The exported file in the first engine that reads it."""
    errors = []
    for name, engine in available(path.suffix[1:]).items():
        try:
            return engine.compile(path, EngineSettings(name, "f32", cpu().physical_cores))
        except EngineError as error:
            errors.append(str(error))
    raise InputError(f"{what}: no engine can read the exported file: {'; '.join(errors)}")


def _part(feeds: Mapping[str, np.ndarray], start: int, stop: int | None) -> Feeds:
    return {name: array[start:stop] for name, array in feeds.items()}


def _count(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))
