"""A short training loop: any module, any loader, any objective; resumable, and the same twice with one seed."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fewbits.errors import InputError
from fewbits.training.objective import Objective, split, supervised

Precision = Literal["f32", "bf16", "fp16"]


@dataclass(frozen=True)
class Epoch:
    """One pass over the data.

    Attributes:
        number: from 1.
        loss: mean over its batches.
        seconds: that it took.
        score: what ``validate`` gave after it, or None.
    """

    number: int
    loss: float
    seconds: float
    score: float | None = None


def fit(
    module: nn.Module,
    data: Iterable[Any],
    *,
    epochs: int,
    objective: Objective | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    lr: float = 1e-3,
    precision: Precision = "f32",
    schedule: Callable[[float], None] | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[Epoch]:
    """Train a module in place.

    The rate falls from ``lr`` to nothing along half a cosine. An interrupted run that is called again with the same
    arguments goes on after the last whole epoch, and ends where it would have ended.

    Args:
        module: on one device; it is trained there.
        data: batches of (inputs, targets), where inputs are a tensor, a tuple of arguments or a dict of named ones; of
            (input, another, ..., targets); of inputs alone, ``[input]``; or dicts of named inputs with the targets
            under ``labels``. It is gone through once for each epoch.
        epochs: passes over the data.
        objective: what is made smaller; cross entropy where None. See :func:`distillation`.
        optimizer: over the module's parameters; Adam where None.
        lr: its rate at the beginning, for an optimizer made here.
        precision: of the forward pass: ``f32``; ``bf16`` or ``fp16`` by torch.amp, the latter on CUDA only, with its
            loss scaled. Weights and their updates stay in float32.
        schedule: called before each batch, and at the end of each epoch, with the part of the run that is done, 0 to 1;
            see :func:`prune`.
        validate: gives a score after each epoch; the module is then in eval mode.
        checkpoint: a file to go on from, written after each epoch, in a folder that is there.
        seed: of dropout and of the order of samples: for each epoch the generators of torch, numpy and Python are
            seeded, and those that a DataLoader and its samplers have of their own.
        progress: called with a stage, the batches done and their number where it is known.

    Raises:
        InputError: nothing to train, more than one device, a rate that is not positive, an optimizer of another module,
            no data, a batch that is none of these, or without targets where they are needed; a loss of more than one
            number; a checkpoint of another run (of other epochs, seed, precision, class of optimizer or first rates),
            or without a folder; a loss that is NaN or infinite (the step is named, and the samples or the first
            submodule that gave such a number).
    """
    device = one_device(module)
    check_precision(precision, device)
    if epochs < 1:
        raise InputError(f"epochs is {epochs}; give 1 or more")
    if not 0 < lr < math.inf:
        raise InputError(f"lr is {lr}; give a positive number")
    objective = objective or supervised()
    trained = [one for one in module.parameters() if one.requires_grad]
    if not trained:
        raise InputError("the module has no parameters that need gradients; there is nothing to train")
    optimizer = optimizer or torch.optim.Adam(trained, lr=lr)
    held = {id(one) for group in optimizer.param_groups for one in group["params"]}
    if held.isdisjoint(map(id, trained)):
        raise InputError(
            "the optimizer has none of the module's parameters; make it of this module: qat and prune_channels give "
            "another one"
        )
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    setting = {
        "epochs": epochs,
        "seed": seed,
        "precision": precision,
        "optimizer": type(optimizer).__name__,
        "rates": [float(group["initial_lr"]) for group in optimizer.param_groups],
    }
    state = _State(module, optimizer, scaler, setting)
    done = state.resumed(Path(checkpoint)) if checkpoint is not None else []

    def loss_of(inputs: Any, targets: Any) -> Tensor:
        with torch.autocast(device.type, _DTYPES[precision], enabled=precision != "f32"):
            return objective(module, inputs, targets)

    for number in range(len(done) + 1, epochs + 1):
        _seed(seed * 100_003 + number, data)
        module.train()
        start, total, count = time.perf_counter(), 0.0, 0
        size = _length(data)
        for batch in data:
            behind = (number - 1 + count / max(size, count + 1)) / epochs
            _set_rates(optimizer, behind)
            if schedule is not None:
                schedule(behind)
            inputs, targets = split(moved(batch, device))
            loss = loss_of(inputs, targets)
            if loss.numel() != 1:
                raise InputError(
                    f"the loss is of shape {list(loss.shape)}; give one number, such as its mean"
                )
            value = float(loss.detach())
            if not math.isfinite(value):
                broken = _unreadable(inputs) or _broken(module, partial(loss_of, inputs, targets))
                raise InputError(f"the loss is {value} at step {count + 1} of epoch {number}; {broken}")
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            total, count = total + value, count + 1
            progress(f"epoch {number} of {epochs}", count, size)
        if not count:
            raise InputError("there is no data: the loader gave no batch; a generator serves one epoch only")
        if schedule is not None:
            schedule(number / epochs)
        seconds = time.perf_counter() - start
        done.append(Epoch(number, total / count, seconds, _validated(module, validate)))
        if checkpoint is not None:
            state.save(Path(checkpoint), done)
    module.eval()
    return done


def check_precision(precision: str, device: torch.device) -> None:
    """Raises InputError where it is none, or one that does not train on such a device."""
    if precision not in get_args(Precision):
        raise InputError(f"precision is {precision!r}; allowed are {', '.join(get_args(Precision))}")
    if precision == "fp16" and device.type != "cuda":
        raise InputError("precision is 'fp16', which trains on CUDA; on a CPU take 'bf16'")


_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def one_device(module: nn.Module) -> torch.device:
    """Where all of a module is. Raises InputError where it is on several devices."""
    devices = {value.device for value in (*module.parameters(), *module.buffers())}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise InputError(f"the module is on several devices ({names}); move all of it to one")
    return next(iter(devices), torch.device("cpu"))


def _set_rates(optimizer: torch.optim.Optimizer, done: float) -> None:
    """Half a cosine from the rates at the beginning to nothing; ``done`` is the part of the run behind us."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * (1 + math.cos(math.pi * done)) / 2


def moved(value: Any, device: torch.device) -> Any:
    """The tensors of a batch, however nested, on a device; mappings come as dicts, named tuples as tuples."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: moved(one, device) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [moved(one, device) for one in value]
        return parts if isinstance(value, list) else tuple(parts)
    return value


def _seed(seed: int, data: Iterable[Any]) -> None:
    """Seed what an epoch's samples, their order and dropout may come of."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    batches = getattr(data, "batch_sampler", None)
    for one in (data, getattr(data, "sampler", None), batches, getattr(batches, "sampler", None)):
        generator = getattr(one, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)


def _length(data: Iterable[Any]) -> int:
    """How many batches there are; 0 where that is not known, as of a stream."""
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:
        return 0


@torch.no_grad()
def _validated(module: nn.Module, validate: Callable[[nn.Module], float] | None) -> float | None:
    if validate is None:
        return None
    module.eval()
    return float(validate(module))


def _broken(module: nn.Module, again: Callable[[], Any]) -> str:
    """Which part of the module is the first to give what is no number, when it runs ``again``."""
    first: list[str] = []
    handles = []
    for name, part in module.named_modules():

        def look(_part: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            leaves = (one for one in pytree.tree_leaves(output) if isinstance(one, Tensor))
            if not all(bool(torch.isfinite(one).all()) for one in leaves):
                first.append(name or type(module).__name__)

        handles.append(part.register_forward_hook(look))
    try:
        with torch.no_grad():
            again()
    finally:
        for handle in handles:
            handle.remove()
    found = f"the first to give such a number is {first[0]!r}" if first else "every layer's output is finite"
    return f"{found}; try a smaller rate or other ranges"


def _unreadable(inputs: Any) -> str | None:
    """What is said where the samples themselves hold NaN; a mask may well hold infinity."""
    leaves = (one for one in pytree.tree_leaves(inputs) if isinstance(one, Tensor))
    broken = any(bool(one.isnan().any()) for one in leaves)
    return "the samples of that step hold NaN; take them out" if broken else None


@dataclass(frozen=True)
class _State:
    """All that a run goes on from."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    setting: dict[str, Any]

    def save(self, path: Path, done: list[Epoch]) -> None:
        """Write it; the file is whole or the one before."""
        beside = path.with_name(f"{path.name}.part")
        parts = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "setting": json.dumps(self.setting),
            "epochs": json.dumps([asdict(one) for one in done]),
        }
        torch.save(parts, beside)
        os.replace(beside, path)

    def resumed(self, path: Path) -> list[Epoch]:
        """Take over what a file holds; the epochs it has behind it."""
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; make it before")
        if not path.exists():
            return []
        try:
            parts = torch.load(path, map_location="cpu", weights_only=True)
            setting = json.loads(parts["setting"])
        except Exception as error:  # whatever a damaged file does
            raise InputError(f"{path}: not a checkpoint that can be read; remove it to begin anew") from error
        other = [name for name, value in self.setting.items() if setting.get(name) != value]
        if other:
            theirs, ours = (
                ", ".join(f"{name} {one.get(name)}" for name in other) for one in (setting, self.setting)
            )
            raise InputError(
                f"{path}: is of a run with {theirs}, this one has {ours}; remove it, or name another file"
            )
        try:
            self.module.load_state_dict(parts["module"])
            self.optimizer.load_state_dict(parts["optimizer"])
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: is of another module or optimizer: {reason}") from error
        self.scaler.load_state_dict(parts["scaler"])
        return [Epoch(**one) for one in json.loads(parts["epochs"])]
