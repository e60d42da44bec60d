"""Knowledge distillation: a student learns what its teacher gives, beside or instead of the targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewbits.errors import InputError
from fewbits.training.objective import Loss, Objective, call, cross_entropy, first


def distillation(
    teacher: nn.Module,
    *,
    temperature: float = 4.0,
    weight: float = 0.9,
    features: Mapping[str, str] | None = None,
    feature_weight: float = 1.0,
    loss: Loss = cross_entropy,
) -> Objective:
    """The difference from the teacher's logits, mixed with the loss against the targets, plus that of chosen features.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531); features after Romero
    et al. 2015, "FitNets" (arXiv:1412.6550), without a regressor between them: their shapes must be the same.

    Args:
        teacher: gives logits [n, classes] as the student does; it is put in eval mode, and gets no gradients.
        temperature: softens both distributions; the term is multiplied by its square.
        weight: of the teacher's term, 0 to 1; the rest is the loss against the targets. With 1 no targets are needed.
        features: submodules of the student by name, and the teacher's that their outputs should be like. Those of a
            student from ``qat`` are its quantizers: ``{"quantizers.relu": "1"}``.
        feature_weight: of the mean squared difference of each pair, relative to the teacher's energy.
        loss: against the targets.

    Raises:
        InputError: a weight or temperature out of range, no such submodule, or (when called) one that is not called,
            shapes or devices that differ, or no targets for the loss.
    """
    if not 0 <= weight <= 1:
        raise InputError(f"distillation: weight is {weight}; give a number between 0 and 1")
    if not temperature > 0:
        raise InputError(f"distillation: temperature is {temperature}; give a positive number")
    if not feature_weight >= 0:
        raise InputError(f"distillation: feature_weight is {feature_weight}; give a number from 0 on")
    pairs = dict(features or {})
    for name in pairs.values():
        _submodule(teacher, name, "teacher")
    teacher.eval()

    def objective(module: nn.Module, inputs: Any, targets: Any) -> Tensor:
        _check_devices(module, teacher)
        with ExitStack() as stack:
            theirs = _watched(stack, teacher, pairs.values(), "teacher")
            ours = _watched(stack, module, pairs.keys(), "student")
            with torch.no_grad():
                wanted = first(call(teacher, inputs))
            got = first(call(module, inputs))
        _check_seen(ours, pairs.keys(), "student")
        _check_seen(theirs, pairs.values(), "teacher")
        if got.shape != wanted.shape:
            raise InputError(
                f"distillation: the student gives {list(got.shape)}, the teacher {list(wanted.shape)}; they have to "
                "be alike"
            )
        total = weight * _soft(got, wanted, temperature)
        if weight < 1:
            total = total + (1 - weight) * loss(got, targets)
        for student, taught in pairs.items():
            total = total + feature_weight * _distance(ours[student], theirs[taught], student, taught)
        return total

    return objective


def _check_devices(student: nn.Module, teacher: nn.Module) -> None:
    ours, theirs = (next((value.device for value in one.parameters()), None) for one in (student, teacher))
    if ours is not None and theirs is not None and ours != theirs:
        raise InputError(
            f"distillation: the teacher is on {theirs}, the student on {ours}; move one: teacher.to({str(ours)!r})"
        )


def _check_seen(seen: Mapping[str, Tensor], names: Iterable[str], who: str) -> None:
    unseen = next((name for name in names if name not in seen), None)
    if unseen is not None:
        raise InputError(
            f"distillation: submodule {unseen!r} of the {who} is not called, so it gives nothing to compare; choose "
            "one that is"
        )


def _soft(got: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    logs = functional.log_softmax(got.float() / temperature, dim=-1)
    aims = functional.log_softmax(wanted.float() / temperature, dim=-1)
    return functional.kl_div(logs, aims, reduction="batchmean", log_target=True) * temperature**2


def _distance(got: Tensor, wanted: Tensor, student: str, teacher: str) -> Tensor:
    if got.shape != wanted.shape:
        raise InputError(
            f"distillation: feature {student!r} of the student is {list(got.shape)}, {teacher!r} of the teacher "
            f"{list(wanted.shape)}; choose features of the same shape"
        )
    energy = wanted.float().square().mean().clamp(min=1e-12)
    return (got.float() - wanted.float()).square().mean() / energy


def _submodule(module: nn.Module, name: str, who: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        known = ", ".join(found for found, _ in module.named_modules() if found)
        raise InputError(f"distillation: the {who} has no submodule {name!r}; it has {known}") from None


def _watched(stack: ExitStack, module: nn.Module, names: Iterable[str], who: str) -> dict[str, Tensor]:
    """What these submodules give while the module runs, until the stack is left."""
    seen: dict[str, Tensor] = {}
    for name in names:

        def keep(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            seen[name] = first(output)

        stack.callback(_submodule(module, name, who).register_forward_hook(keep).remove)
    return seen
