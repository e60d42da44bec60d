"""Which tensors of a checkpoint are the weights of layers: told by the model's class, or by names and ranks."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fewbits.errors import InputError
from fewbits.models.checkpoint.folder import Checkpoint, some, without_code
from fewbits.models.checkpoint.stored import FLOATS, Entry
from fewbits.planning.model_info import LayerInfo, LayerKind, ModelInfo, WeightInfo

EMBEDDING = re.compile(r"emb|^wte$|^wpe$|^shared$")
"""Found in the last word of a path where rows are looked up, if no class tells."""

INSTALL = "pip install transformers accelerate"


@dataclass(frozen=True)
class Layers:
    """What is known of a checkpoint's tensors.

    Attributes:
        info: the layers whose weights can be represented anew; ``name`` is the module's path.
        others: of every other tensor by name, what it is and why it is kept.
        tied: tensors that are stored although they are another's, with that other's name.
        names: of every stored tensor, the parameters of the model that it is; the first is the one it is stored for.
        model: the class that loads it, by name; None where it is not known.
        notes: what a user should know.
    """

    info: ModelInfo
    others: Mapping[str, tuple[str, str]]
    tied: Mapping[str, str]
    names: Mapping[str, tuple[str, ...]]
    model: str | None
    notes: tuple[str, ...]

    @property
    def aliases(self) -> dict[str, str]:
        """Names of layers that share a stored tensor, with the name of the layer it is stored for."""
        return {
            _module(other): _module(name) for name, (_, *others) in self.names.items() for other in others
        }


@dataclass(frozen=True)
class _Kind:
    """An operator as torch calls it, its family, and the axis that keeps a scale per channel."""

    op: str
    kind: LayerKind
    channel_axis: int = 0


ALSO: dict[LayerKind, tuple[str, ...]] = {
    "linear": ("Gemm", "MatMul"),
    "embedding": ("Gather",),
    "conv": ("Conv",),
}
"""ONNX's words for a family, which recipes may use too."""


def find_layers(checkpoint: Checkpoint) -> Layers:
    """Tell layers from other tensors.

    The class that the config names is built without memory for its weights (meta device), and transformers itself says
    which tensors it misses. Code that comes with the checkpoint is never run: where there is no such class in
    transformers, and where transformers is not installed, names and ranks tell, which a note says.

    Raises:
        InputError: the class needs tensors that the checkpoint lacks, or of another shape.
    """
    skeleton, note = _skeleton(checkpoint)
    if skeleton is None:
        kinds = {name: _by_name(entry) for name, entry in checkpoint.entries.items()}
        return _layers(checkpoint, kinds, {}, {name: (name,) for name in kinds}, None, (note,))
    model, notes = skeleton
    targets = _targets(model, checkpoint)
    kinds = {name: _by_module(model, targets[name], entry) for name, entry in checkpoint.entries.items()}
    stored = {target: name for name, target in targets.items()}
    tied: dict[str, str] = {}
    shared: dict[str, list[str]] = {}
    for target, source in model.all_tied_weights_keys.items():
        if target in stored and source in stored:
            tied[stored[target]] = stored[source]
        shared.setdefault(source, [source]).append(target)
    groups = {one: group for group in shared.values() for one in group}
    names = {
        name: (target, *(one for one in groups.get(target, ()) if one != target))
        for name, target in targets.items()
    }
    return _layers(checkpoint, kinds, tied, names, type(model).__name__, notes)


def _layers(
    checkpoint: Checkpoint,
    kinds: Mapping[str, _Kind | str],
    tied: Mapping[str, str],
    names: Mapping[str, tuple[str, ...]],
    model: str | None,
    notes: tuple[str, ...],
) -> Layers:
    layers: list[LayerInfo] = []
    others: dict[str, tuple[str, str]] = {}
    for name, entry in checkpoint.entries.items():
        kind = kinds[name]
        if isinstance(kind, str):
            others[name] = (kind, "holds few numbers that need the range and precision of float")
        elif entry.dtype not in FLOATS:
            others[name] = (kind.op, f"is stored as {entry.dtype} already")
        elif name not in tied and all(entry.shape):
            group_axis = 1 - kind.channel_axis
            weight = WeightInfo(name, entry.shape, kind.channel_axis, group_axis)
            also = ALSO[kind.kind]
            layers.append(
                LayerInfo(_module(name), name, kind.op, kind.kind, (weight,), None, (), "", also=also)
            )
    return Layers(ModelInfo((), (), tuple(layers)), others, tied, names, model, notes)


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor


def _skeleton(checkpoint: Checkpoint) -> tuple[tuple[Any, tuple[str, ...]] | None, str]:
    """The model on the meta device and notes on it; or None, and why."""
    by_name = "linear layers and embeddings are told by names and ranks: "
    try:
        import accelerate  # noqa: F401  (without it transformers cannot leave the weights where they are)
        import transformers
    except ImportError:
        return None, by_name + f"transformers is not installed ({INSTALL})"
    names = checkpoint.config.get("architectures") or ["none"]
    found = getattr(transformers, str(names[0]), None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        return None, by_name + f"transformers {transformers.__version__} has no class {names[0]!r}"
    try:
        model, said = _load_without_weights(found, checkpoint)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        return (
            None,
            by_name + f"transformers could not build {found.__name__} ({type(error).__name__}: {first})",
        )
    return (model, _judge(checkpoint, found.__name__, said)), ""


def _load_without_weights(found: Any, checkpoint: Checkpoint) -> tuple[Any, Mapping[str, Any]]:
    """Build it on the meta device, and let transformers hold the files' names and shapes against it."""
    with silent():
        config = found.config_class.from_dict(without_code(checkpoint.config))
        model, said = found.from_pretrained(
            checkpoint.path,
            config=config,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            attn_implementation="eager",
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
        )
    return model, said


def _judge(checkpoint: Checkpoint, model: str, said: Mapping[str, Any]) -> tuple[str, ...]:
    """Raise for what transformers would make up; note what it would leave out."""
    if missing := sorted(said["missing_keys"]):
        raise InputError(
            f"{checkpoint.path}: {len(missing)} tensors of {model} are missing: {some(missing)}; transformers would "
            "make them up at random: complete the checkpoint, or correct 'architectures' in its config"
        )
    if mismatched := sorted(said["mismatched_keys"]):
        name, here, there = mismatched[0]
        raise InputError(
            f"{checkpoint.path}: {len(mismatched)} tensors have another shape than in {model}: {name} is "
            f"{list(here)} and must be {list(there)}; its config is of another model"
        )
    extra = sorted(said["unexpected_keys"])
    return (f"{len(extra)} tensors that {model} does not have are kept: {some(extra)}",) if extra else ()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """transformers reports and draws bars while it loads; here the report is fewbits' own."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _targets(model: Any, checkpoint: Checkpoint) -> dict[str, str]:
    """The parameter of the model that each stored tensor goes to: old names are renamed, experts are merged."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # transformers before 5 stores what its modules are called
        return {name: name for name in checkpoint.entries}
    transforms = get_model_conversion_mapping(model)
    renamings: list[Any] = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters: list[Any] = [one for one in transforms if not isinstance(one, WeightRenaming)]
    parameters = model.state_dict()
    return {
        name: rename_source_key(name, renamings, converters, model.base_model_prefix, parameters)[0]
        for name in checkpoint.entries
    }


def _by_module(model: Any, target: str, entry: Entry) -> _Kind | str:
    """The layer that a parameter is the weight of, or else whose parameter it is."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    path, _, parameter = target.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return "no layer of the model"
    if isinstance(module, nn.Linear | Conv1D) and parameter == "weight":
        # Conv1D stores [inputs, outputs]; its rows share scales as they lie.
        return _Kind("Linear" if isinstance(module, nn.Linear) else "Conv1D", "linear")
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and parameter == "weight":
        return _Kind(_plain_name(module, nn.Embedding, nn.EmbeddingBag), "embedding")
    if isinstance(module, nn.modules.conv._ConvNd) and parameter == "weight":
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        names = nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
        return _Kind(_plain_name(module, *names), "conv", 1 if transposed else 0)
    merged = getattr(module, parameter, None)
    if merged is not None and merged.ndim == 3 and len(entry.shape) == 2:
        return _Kind("Linear", "linear")  # one of the experts that are merged at load
    return f"{type(module).__name__} {parameter}"


def _plain_name(module: Any, *known: type) -> str:
    """The name of torch's own class, whatever it was derived to."""
    return next(one.__name__ for one in known if isinstance(module, one))


def _by_name(entry: Entry) -> _Kind | str:
    """What a tensor's name and rank make likely."""
    rank = len(entry.shape)
    if not entry.name.endswith("weight") or rank < 2 or rank > 5:
        return "parameter"
    if rank > 2:
        return _Kind(f"Conv{rank - 2}d", "conv")
    looked_up = EMBEDDING.search(_module(entry.name).rpartition(".")[2])
    return _Kind("Embedding", "embedding") if looked_up else _Kind("Linear", "linear")
