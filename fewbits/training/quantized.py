"""Modules that training does not take, because their weights are codes."""

from __future__ import annotations

from torch import nn

from fewbits.errors import InputError
from fewbits.models.torch.again import CompressedModule
from fewbits.modules.weight import CodedWeight
from fewbits.training.fake_quantize import TrainedBook, TrainedStep, TrainedWeight


def refuse_quantized(module: nn.Module) -> None:
    """Raises InputError where a module, or a part of it, was quantized: by ``quantize``, ``compress`` or ``qat``."""
    for path, part in module.named_modules():
        if isinstance(part, CodedWeight):
            what = f"{path or 'it'} is {part.row.name}"
        elif isinstance(part, CompressedModule):
            what = "it runs a compressed file"
        elif isinstance(part, (TrainedWeight, TrainedBook, TrainedStep)):
            what = "it came from qat, where a module goes once it is pruned"
        else:
            continue
        raise InputError(
            f"the module is quantized already: {what}; give the float module that it was made from"
        )
