"""Weights that are zero and stay zero, whichever loop trains them: masks on layers, at once or step by step."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fewbits.errors import InputError
from fewbits.methods.pruning import checked_sparsity, gradual_sparsity, magnitude_masks, n_of_m_mask
from fewbits.training.quantized import refuse_quantized

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
Rule = Callable[[Sequence[Tensor], float], list[Tensor]]
"""Weights and the share of them to leave out in; masks out, True where a weight stays."""
UPDATES = 100  # how often masks grow in a whole run: finding them sorts every weight


def prune(
    module: nn.Module,
    sparsity: float | None = None,
    *,
    pattern: str | None = None,
    over: tuple[float, float] | None = None,
    across: Literal["layer", "model"] = "layer",
    exclude: Sequence[str] = (),
) -> Masks:
    """Put masks on the weights of a module's linear and convolutional layers, in place; the smallest become zero.

    Masks are parametrizations of torch: every loop and optimizer trains what is left, ``state_dict`` holds them, copies
    have them. :meth:`Masks.bake` leaves plain layers with zeros in them.

    Args:
        module: its classes ``nn.Linear`` and ``nn.Conv1d`` to ``nn.Conv3d`` are pruned.
        sparsity: the share of each layer's weights that become zero (of all together where ``across`` is ``"model"``).
        pattern: ``"2:4"`` and its like, instead: of every 4 neighbours along the inputs, 2 stay.
        over: from which to which part of a run the share grows, as (0, 0.5); give what comes back to ``fit`` as
            ``schedule``. A pattern grows by one weight of its M after the other. At once where None. See
            :func:`fewbits.methods.pruning.gradual_sparsity`.
        across: what the smallest weights are found among.
        exclude: patterns of layer names to leave alone.

    Raises:
        InputError: a module that is quantized already, neither or both of sparsity and pattern, values out of range, a
            pattern that does not fit (every such layer is listed), nothing to prune, a weight that two layers share,
            one that has a mask already, or one of which nothing would be left in the end (while masks grow, too).
    """
    if (sparsity is None) == (pattern is None):
        raise InputError("prune: give either a sparsity, such as 0.8, or a pattern, such as '2:4'")
    if over is not None and not 0 <= over[0] < over[1] <= 1:
        raise InputError(
            f"prune: over is {over}; give two rising parts of the run from 0 to 1, such as (0, 0.5)"
        )
    if across not in ("layer", "model"):
        raise InputError(f"prune: across is {across!r}; allowed are 'layer' and 'model'")
    layers = _layers(module, exclude)
    rule: Rule
    if pattern is not None:
        n, m = _pattern(pattern, layers)
        rule, share = partial(_of_neighbours, m=m), 1 - n / m
    else:
        assert sparsity is not None
        checked_sparsity(sparsity)
        rule, share = magnitude_masks if across == "model" else _of_each, sparsity
    final = dict(zip(layers, rule([layer.weight for layer in layers.values()], share), strict=True))
    _refuse_empty(final, share)
    if over is None:
        return Masks(_masked(layers, final), None)
    masks = {name: torch.ones_like(kept) for name, kept in final.items()}
    return Masks(_masked(layers, masks), Growth(rule, share, over))


def keep_zeros(module: nn.Module) -> Masks:
    """Put masks on every layer that has zeros among its weights, in place, so that further training leaves them.

    Layers whose weight is another layer's too are left alone, as :func:`prune` has them left out.

    Raises:
        InputError: no layer has any, or one has a mask already.
    """
    every, shared = _chosen(module, ()), _shared(module)
    layers = {
        name: layer for name, layer in every.items() if name not in shared and not bool(layer.weight.all())
    }
    _refuse_masked(layers)
    masks = {name: layer.weight != 0 for name, layer in layers.items()}
    if not masks:
        raise InputError(
            "keep_zeros: no linear or convolutional layer has a weight that is zero; prune it first"
        )
    return Masks(_masked(layers, masks), None)


@dataclass(frozen=True)
class Growth:
    """What weights become zero by, the share of them in the end, and during which parts of a run it grows."""

    rule: Rule
    share: float
    over: tuple[float, float]


class Masks:
    """The masks of a module; called with the part of a run that is done, they grow as their schedule says."""

    def __init__(self, masked: dict[str, tuple[Layer, Mask]], growth: Growth | None) -> None:
        self._masked, self._growth = masked, growth

    def __call__(self, done: float) -> None:
        """Grow to what the schedule says for this part of the run, 0 to 1; once zero, a weight stays zero."""
        update, growth = int(done * UPDATES), self._growth
        if growth is None or all(int(mask.update) >= update for _, mask in self._masked.values()):
            return
        share = gradual_sparsity(update / UPDATES, growth.share, *growth.over)
        found = growth.rule([layer.weight for layer, _ in self._masked.values()], share)
        kept = {
            name: mask.kept & new for (name, (_, mask)), new in zip(self._masked.items(), found, strict=True)
        }
        _refuse_empty(kept, share)
        for name, (_, mask) in self._masked.items():
            mask.kept.copy_(kept[name])
            mask.update.fill_(update)

    @property
    def sparsity(self) -> float:
        """The share of weights that are zero in the layers that have masks."""
        kept = [mask.kept for _, mask in self._masked.values()]
        return 1 - sum(int(one.sum()) for one in kept) / sum(one.numel() for one in kept)

    def bake(self) -> None:
        """Take the masks off; weights are plain parameters again, with zeros in them."""
        for layer, _ in self._masked.values():
            parametrize.remove_parametrizations(layer, "weight")


class Mask(nn.Module):
    """Zeros where ``kept`` (bool, the weight's shape) is False; they get no gradients.

    ``update`` counts how far its schedule has come.
    """

    kept: Tensor
    update: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)
        self.register_buffer("update", torch.tensor(-1, device=kept.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its zeros."""
        return torch.where(self.kept, weight, 0.0)


def _layers(module: nn.Module, exclude: Sequence[str]) -> dict[str, Layer]:
    """The layers to prune by name, each with a weight of its own and without a mask."""
    chosen, shared = _chosen(module, exclude), _shared(module)
    _refuse_masked(chosen)
    for name in chosen:
        if name in shared:
            raise InputError(f"layer {name!r}: its weight is another layer's too; leave it out with exclude")
    return chosen


def _chosen(module: nn.Module, exclude: Sequence[str]) -> dict[str, Layer]:
    """Layers of the kinds that are pruned, by name."""
    refuse_quantized(module)
    every = {name: layer for name, layer in module.named_modules() if isinstance(layer, Layer)}
    unused = [one for one in exclude if not any(fnmatchcase(name, one) for name in every)]
    if unused:
        raise InputError(f"exclude: {unused[0]!r} matches no layer; there are {', '.join(every)}")
    chosen = {
        name: layer for name, layer in every.items() if not any(fnmatchcase(name, one) for one in exclude)
    }
    if not chosen:
        raise InputError(
            f"there is nothing to prune: no linear or convolutional layer in {type(module).__name__}"
            f"{', but for those excluded' if every else ''}"
        )
    return chosen


def _shared(module: nn.Module) -> set[str]:
    """The modules whose weight is another's too."""
    weights = {
        name: part.weight  # held: what a parametrization gives is new each time, and so would its place be
        for name, part in module.named_modules()
        if isinstance(getattr(part, "weight", None), Tensor)
    }
    users = Counter(id(weight) for weight in weights.values())
    return {name for name, weight in weights.items() if users[id(weight)] > 1}


def _refuse_masked(layers: dict[str, Layer]) -> None:
    for name, layer in layers.items():
        if parametrize.is_parametrized(layer, "weight"):
            raise InputError(f"layer {name!r}: its weight is parametrized already; bake() its masks first")


def _refuse_empty(kept: dict[str, Tensor], share: float) -> None:
    """Raises InputError where nothing would be left of a layer."""
    for name, mask in kept.items():
        if not bool(mask.any()):
            raise InputError(
                f"prune: with {share:.4g} of the weights at zero nothing is left of layer {name!r} (it has "
                f"{mask.numel()}); leave it out with exclude, or give a smaller share"
            )


def _of_each(weights: Sequence[Tensor], share: float) -> list[Tensor]:
    """The smallest of every weight by itself."""
    return [mask for weight in weights for mask in magnitude_masks([weight], share)]


def _of_neighbours(weights: Sequence[Tensor], share: float, m: int) -> list[Tensor]:
    """The smallest of every m neighbours along the inputs, as many whole ones as the share comes to."""
    n = m - int(share * m + 1e-6)
    if n == m:
        return [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
    return [n_of_m_mask(weight, n, m) for weight in weights]


def _pattern(pattern: str, layers: dict[str, Layer]) -> tuple[int, int]:
    """N and M of a pattern that fits every layer."""
    found = re.fullmatch(r"(\d+):(\d+)", pattern)
    if found is None:
        raise InputError(f"prune: pattern is {pattern!r}; give N:M, such as '2:4'")
    n, m = int(found[1]), int(found[2])
    if not 0 < n < m:
        raise InputError(f"prune: pattern is {pattern!r}; of every M neighbours N stay, 0 < N < M, as in 2:4")
    odd = [name for name, layer in layers.items() if layer.weight.shape[1] % m]
    if odd:
        raise InputError(
            f"prune: {pattern} does not fit layers whose inputs are no multiple of {m}: {', '.join(odd)}; "
            "leave them out with exclude"
        )
    return n, m


def _masked(layers: dict[str, Layer], kept: dict[str, Tensor]) -> dict[str, tuple[Layer, Mask]]:
    made = {name: (layers[name], Mask(places)) for name, places in kept.items()}
    for layer, mask in made.values():
        parametrize.register_parametrization(layer, "weight", mask)
    return made
