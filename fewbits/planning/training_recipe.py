"""A recipe of training: a model, its data, and stages that follow each other. Read from TOML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fewbits.errors import InputError

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Precision = Literal["f32", "bf16", "fp16"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Trained(_Record):
    epochs: Positive
    lr: Annotated[float, Field(gt=0)] = 1e-3
    precision: Precision = "f32"


class _Taught(_Trained):
    temperature: Annotated[float, Field(gt=0)] = 4.0
    weight: Annotated[float, Field(ge=0, le=1)] = 0.9
    features: dict[str, str] = {}
    feature_weight: Annotated[float, Field(ge=0)] = 1.0


class Prune(_Record):
    """Channels are removed: see :func:`fewbits.training.prune_channels`; ``batches`` tell what they are worth.

    ``blocks`` are left out after that: see :func:`fewbits.training.prune_blocks`; ``macs`` does not count them.
    """

    kind: Literal["prune"]
    blocks: tuple[str, ...] = ()
    macs: Share | None = None
    params: Share | None = None
    channels: Share | None = None
    importance: Literal["l2", "taylor"] = "taylor"
    batches: Positive = 8
    multiple: Positive = 1
    exclude: tuple[str, ...] = ()

    @property
    def limits(self) -> dict[str, float]:
        """What is to be left of the channels, by the name of what is counted."""
        given = {"macs": self.macs, "params": self.params, "channels": self.channels}
        return {name: share for name, share in given.items() if share is not None}

    @model_validator(mode="after")
    def _one_way(self) -> Prune:
        if not (self.limits or self.blocks) or (self.channels is not None and len(self.limits) > 1):
            raise ValueError("give macs or params or both, or channels, or blocks alone")
        return self


class Sparsify(_Record):
    """Single weights become zero, and stay zero in the stages behind: see :func:`fewbits.training.prune`.

    With ``over`` they become so in the stage behind, ever more during that many of its epochs: it is a part of it.
    """

    kind: Literal["sparsify"]
    sparsity: Annotated[float, Field(gt=0, lt=1)] | None = None
    pattern: Annotated[str, Field(pattern=r"^[1-9]\d*:[1-9]\d*$")] | None = None
    over: Positive | None = None
    across: Literal["layer", "model"] = "layer"
    exclude: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_way(self) -> Sparsify:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give either a sparsity, such as 0.8, or a pattern, such as '2:4'")
        return self


class Train(_Trained):
    """Further training against the labels."""

    kind: Literal["train"]


class Distil(_Taught):
    """Further training, taught by the model as it came: see :func:`fewbits.training.distillation`."""

    kind: Literal["distil"]


class Qat(_Taught):
    """Training with rounding, taught by the model as it came: see :func:`fewbits.training.qat`.

    Activations keep their ranges once the part ``freeze`` of the epochs is over.
    """

    kind: Literal["qat"]
    recipe: str = "w8a8"
    samples: Positive = 512
    freeze: Annotated[float, Field(ge=0, lt=1)] | None = None
    exclude: tuple[str, ...] = ()


class Export(_Record):
    """The file of the stage before is handed over under this name."""

    kind: Literal["export"]
    name: Annotated[str, Field(pattern=r"^[\w.-]+\.onnx$")] = "model.onnx"


Stage = Prune | Sparsify | Train | Distil | Qat | Export


class TrainingRecipe(_Record):
    """All of it.

    Attributes:
        model: ``module:factory``.
        data: an ``.npz`` to train and calibrate with: arrays named like the model's inputs, and ``labels``.
        eval: one to score with.
        batch_size: of training.
        seed: of whatever is drawn at random.
        stages: in the order in which they run.
    """

    model: str
    data: str
    eval: str
    batch_size: Positive = 64
    seed: int = 0
    stages: Annotated[tuple[Annotated[Stage, Field(discriminator="kind")], ...], Field(min_length=1)]


def read_training_recipe(path: Path) -> TrainingRecipe:
    """A recipe of training from a TOML file.

    Raises:
        InputError: no such file, TOML that does not parse, an unknown stage or field, one that is missing or out of
            range, or stages that cannot follow each other. The file and the field are named.
    """
    import tomllib

    try:
        parsed = TrainingRecipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {path}: not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        got = "" if isinstance(first["input"], (dict, list)) else f" (got {first['input']!r})"
        raise InputError(f"recipe {path}: {where}: {said}{got}") from error
    kinds = [stage.kind for stage in parsed.stages]
    for place, kind in enumerate(kinds):
        behind = kinds[place + 1 :]
        if (kind == "qat" and behind not in ([], ["export"])) or (kind == "export" and behind):
            raise InputError(
                f"recipe {path}: stages.{place + 2}: {behind[0]!r} cannot follow {kind!r}; "
                f"{'only export can' if kind == 'qat' else 'it is the last'}"
            )
    for place, stage in enumerate(parsed.stages):
        if isinstance(stage, Sparsify) and stage.over is not None:
            follows = parsed.stages[place + 1 : place + 2]
            if not any(isinstance(one, (Train, Distil)) and one.epochs >= stage.over for one in follows):
                raise InputError(
                    f"recipe {path}: stages.{place + 1}.sparsify.over: is {stage.over}, but there is no train "
                    "or distil stage of as many epochs right behind it, in which weights could become zero"
                )
            if "sparsify" in kinds[:place]:
                raise InputError(
                    f"recipe {path}: stages.{place + 1}.sparsify.over: cannot follow another sparsify; leave one "
                    "of them out, or over"
                )
    if kinds == ["export"]:
        raise InputError(f"recipe {path}: stages.1: 'export' alone; put at least one other stage before it")
    return parsed
