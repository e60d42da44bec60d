"""A module in, a module out: its weights as codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fewbits.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from fewbits.planning.recipe import Recipe


def quantize(module: nn.Module, recipe: str | Recipe = "w8", *, exclude: Sequence[str] = ()) -> nn.Module:
    """A copy of a module that behaves as the module does, in fewer bits, without retraining.

    It has the same class and the same forward; where a Parameter was there are codes with their scales, as buffers.
    ``state_dict``, ``copy.deepcopy``, ``.to(device)``, ``torch.compile`` and ``generate()`` of transformers work as
    before; :func:`fewbits.save` and :func:`fewbits.load` keep codes as codes.

    Args:
        module: in float, on any device.
        recipe: a preset such as ``w8``, ``w4_g128`` or ``w8a8_dynamic``; another format of weights, such as
            ``w3_g64``, ``w_nf4_g64`` or ``w_ternary``; the path of a ``.toml``; or a Recipe.
        exclude: patterns of layer names or operators to keep in float.

    Raises:
        InputError: a module that cannot be quantized or is quantized already, a recipe that does not fit it, or NaN or
            infinity in a weight; the layer is named.
    """
    from fewbits.modules.convert import converted
    from fewbits.modules.recipes import recipe_for

    found = recipe_for(recipe, exclude)
    if found.needs_data:
        raise InputError(
            f"recipe {found.name!r} quantizes activations with ranges known in advance, which engines run: "
            f"fb.compress(module, data, recipe={found.name!r}).model is a module, too"
        )
    return converted(module, found)
