"""A model that runs: the same inputs and outputs as the one that came in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from fewbits.engines.engine import EngineSettings, Session, get
from fewbits.errors import InputError
from fewbits.handover import REPORT
from fewbits.models.checkpoint import FORMAT as CHECKPOINT

if TYPE_CHECKING:
    from torch import nn

    from fewbits.models.torch.again import CompressedModule
    from fewbits.models.torch.structure import Structure
    from fewbits.report.record import Report


class LoadedModel:
    """A file compiled in an engine; call it with arrays in the order of the inputs, or by name.

    It gives one array where the model has one output, else a tuple in the model's order.
    """

    def __init__(self, path: Path, settings: EngineSettings) -> None:
        self.path = path
        self.settings = settings
        self.session: Session = get(settings.engine).compile(path, settings)

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        """Run once. Raises InputError where the inputs are not the model's."""
        names = self.session.input_names
        if len(arrays) == 1 and isinstance(arrays[0], dict):
            named = {**arrays[0], **named}
            arrays = ()
        if len(arrays) > len(names):
            raise InputError(f"{self.path}: {len(arrays)} inputs given; the model has {', '.join(names)}")
        feeds = {**dict(zip(names, arrays, strict=False)), **named}
        outputs = self.session.run({name: _array(value) for name, value in feeds.items()})
        values = tuple(outputs.values())
        return values[0] if len(values) == 1 else values

    def __repr__(self) -> str:
        return f"<{_in_words(self.path, self.settings)}>"


Arch = Union[str, Callable[[], Any], "nn.Module"]
Loaded = Union[LoadedModel, "CompressedModule", "nn.Module"]
"""A model that runs: as a module where a module came in, and as transformers' own where a directory did."""


def load(path: str | Path, arch: Arch | None = None) -> Any:
    """What fewbits wrote, ready to run.

    A folder of ``compress`` runs in the engine and with the settings that were measured; what was a module is a
    module again: tensors in, tensors out, nested as they were; what was a Hugging Face directory is loaded by
    transformers. A file of ``save`` is the module that was quantized.

    Args:
        path: of the folder or the file.
        arch: what makes the float module of such a file: ``module:factory``, a callable, or a module, which is not
            changed.

    Raises:
        InputError: it was not written by fewbits, holds no model, or is not of that architecture.
    """
    if Path(path).suffix == ".safetensors":
        return _module(Path(path), arch)
    if arch is not None:
        raise InputError(f"{path}: arch names the model for a .safetensors file; leave it out here")
    return _from_folder(Path(path))


def _module(path: Path, arch: Arch | None) -> nn.Module:
    import copy

    from fewbits.models.torch.factory import call, make
    from fewbits.modules.files import load as load_module

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if arch is None:
        raise InputError(
            f"{path}: holds a module's weights; say what makes the module: fb.load(path, arch=...)"
        )
    if isinstance(arch, str):
        return load_module(path, make(arch), arch)
    skeleton = call(arch, getattr(arch, "__name__", type(arch).__name__))
    return load_module(
        path, copy.deepcopy(skeleton) if skeleton is arch else skeleton, type(skeleton).__name__
    )


def _from_folder(folder: Path) -> Loaded:
    report = _report(folder)
    if report.source.format == CHECKPOINT:
        return _from_checkpoint(folder)
    path, settings = saved(folder)
    if report.source.structure is None:
        return LoadedModel(path, settings)
    from fewbits.models.torch.structure import Structure

    return wrapped(path, settings, tuple(report.sample_shapes), Structure.from_json(report.source.structure))


def _from_checkpoint(folder: Path) -> nn.Module:
    from fewbits.models.checkpoint.load import load_plain, own_files, skeleton

    files = own_files(folder)
    if not files:
        return load_plain(folder)
    from fewbits.modules.files import load_shards

    model = skeleton(folder)
    return load_shards(files, folder, model, type(model).__name__)


def wrapped(
    path: Path, settings: EngineSettings, inputs: Sequence[str], structure: Structure | None
) -> Loaded:
    """The file as what came in: a module where its outputs have a structure.

    Args:
        path: of the file.
        settings: what runs it.
        inputs: the names of the model's inputs, in order.
        structure: how a module nests its outputs; None where no module came in.
    """
    model = LoadedModel(path, settings)
    if structure is None:
        return model
    from fewbits.models.torch.again import CompressedModule

    return CompressedModule(model.session.run, inputs, structure, _in_words(path, settings))


def saved(folder: Path) -> tuple[Path, EngineSettings]:
    """Path and settings of the file that a folder hands over. Raises InputError as :func:`load`."""
    report = _report(folder)
    if report.source.format == CHECKPOINT:
        raise InputError(f"{folder}: a Hugging Face directory, which no engine runs; use fb.load in Python")
    shown = report.shown
    if shown is None or shown.path is None or shown.precision is None:
        raise InputError(f"{folder}: its report names no saved model")
    threads = shown.threads or 1
    rounding = int(shown.settings.get("activation_group_size", "0"))
    return folder / shown.path, EngineSettings(shown.engine, shown.precision, threads, rounding)


def _report(folder: Path) -> Report:
    from fewbits.report.record import Report

    try:
        text = (folder / REPORT).read_bytes()
    except OSError as error:
        raise InputError(f"{folder}: no {REPORT} in it; give a folder that fewbits compress wrote") from error
    return Report.from_json(text)


def _in_words(path: Path, settings: EngineSettings) -> str:
    threads = f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    return f"{path.name} in {settings.engine} at {settings.precision}, {threads}"


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
