"""Learn a plan's numbers, block by block: codes, steps and biases with which a block gives what it gave in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fewbits.decide import with_bias
from fewbits.engines.cpu import Cpu
from fewbits.engines.targets import targets
from fewbits.learnable import Learnable, inputs_of
from fewbits.methods.reconstruction import Material, Spent, Values, reconstruct, seconds
from fewbits.models.model import Model
from fewbits.models.network import Block, Network, Reads, UnsupportedError
from fewbits.planning.plan import ActivationPlan, LayerPlan, Plan
from fewbits.planning.recipe import Effort
from fewbits.planning.target import Target
from fewbits.samples import Samples

SAMPLES = 1024
SAMPLE_BYTES = 1 << 28  # of one tensor between two blocks are held at most
BATCH = 64  # samples at a time where nothing is learned
FINISH = 0.3  # of the usual rates, once codes are settled

SPENT: Mapping[Effort, Spent | None] = {"fast": None, "normal": Spent(steps=150), "high": Spent(steps=500)}
"""What is spent on each block; None: nothing is learned."""


@dataclass(frozen=True)
class LearnedBlock:
    """What learning did for one block.

    Attributes:
        layers: the nodes of its layers.
        before, after: energy of the difference from the float block's output, relative to that output's.
    """

    layers: tuple[str, ...]
    before: float
    after: float


class Lesson:
    """One plan to be learned on some samples.

    Args:
        model: what the plan is for.
        plan: to begin with.
        samples: the first SAMPLES of them are used, or as many as memory allows.
        spent: on each block.

    Raises:
        UnsupportedError: a part of the model cannot be run with gradients, or not sample by sample.
    """

    def __init__(self, model: Model, plan: Plan, samples: Samples, spent: Spent) -> None:
        if not samples.intake.plain:
            raise UnsupportedError("an input that does not have the samples along its first axis")
        self._network = model.network()
        self._quantized = Learnable(model, self._network, plan)
        self._blocks = self._network.blocks(self._quantized.nodes)
        if not self._blocks:
            raise UnsupportedError("no layer has weights that learn")
        self._batch = samples.batch
        self._spent = spent if self._batch is None else replace(spent, batch=self._batch)
        self._finish = replace(self._spent, pace=FINISH)
        self._whole = Block(None, self._network.outputs, frozenset(), ())
        arrays = samples.first(max(SAMPLES, self._batch or 1))
        self._inputs = self._bounded({name: torch.from_numpy(array) for name, array in arrays.items()})

    def _bounded(self, inputs: Values) -> Values:
        """As many samples as are learned from: what lies between two blocks has to fit in memory."""
        count = self._batch or min(2, len(next(iter(inputs.values()))))
        few = {name: tensor[:count] for name, tensor in inputs.items()}
        with torch.no_grad():
            ends = self._network.run(few, [name for block in self._blocks for name in block.end], {})
        for name, tensor in ends.items():
            if not tensor.dim() or len(tensor) != count:
                raise UnsupportedError(f"tensor {name!r} does not have the samples along its first axis")
        largest = max((tensor.nbytes // count for tensor in ends.values()), default=1)
        most = min(SAMPLES, max(count, SAMPLE_BYTES // largest), len(next(iter(inputs.values()))))
        most -= most % (self._batch or 1)
        return {name: tensor[:most] for name, tensor in inputs.items()}

    def seconds(self) -> float:
        """How long :meth:`learn` takes on this machine, by a few steps of every block."""
        few = {name: tensor[: self._spent.batch] for name, tensor in self._inputs.items()}
        total = 0.0
        for block in self._blocks:
            part = partial(_output, self._network, block, self._quantized.reads)
            target = self._computed(block, few, {})
            material = Material(few, few, target)
            total += seconds(part, self._quantized.open(block.nodes), material, self._spent)
            few = {**few, **({block.end[0]: target} if len(block.end) == 1 else {})}
        if len(self._blocks) > 1:
            part = partial(_output, self._network, self._whole, self._quantized.reads)
            every = self._quantized.open(node for block in self._blocks for node in block.nodes)
            given = {name: few[name] for name in self._inputs}
            total += seconds(part, every, Material(given, given, target), self._finish)
        return total

    def learn(self, seed: int, progress: Callable[[int, int], None]) -> tuple[Plan, tuple[LearnedBlock, ...]]:
        """The same layers and sites with other numbers, and what was learned block by block.

        Args:
            seed: of the choice of samples.
            progress: called with the blocks done, and their number.
        """
        generator = torch.Generator().manual_seed(seed)
        exact, rounded = dict(self._inputs), dict(self._inputs)
        found = []
        for number, block in enumerate(self._blocks):
            progress(number, len(self._blocks))
            target = self._computed(block, exact, {})
            part = partial(_output, self._network, block, self._quantized.reads)
            material = Material(exact, rounded, target)
            learned = self._quantized.open(block.nodes)
            before, after = reconstruct(part, learned, material, self._spent, generator)
            self._quantized.close(learned)
            found.append(LearnedBlock(block.layers, before, after))
            if number + 1 < len(self._blocks):
                (end,) = block.end
                rounded = {**self._inputs, end: self._computed(block, rounded, self._quantized.reads)}
                exact = {**self._inputs, end: target}
        if len(self._blocks) > 1:
            self._settle(target, generator)
        return self._quantized.plan(), tuple(found)

    def _settle(self, target: Tensor, generator: torch.Generator) -> None:
        """Learn once more all but the codes, on what the whole network gives: blocks know nothing of those behind."""
        part = partial(_output, self._network, self._whole, self._quantized.reads)
        material = Material(self._inputs, self._inputs, target)
        reconstruct(part, self._quantized.settled(), material, self._finish, generator)

    @torch.no_grad()
    def _computed(self, block: Block, given: Values, reads: Reads) -> Tensor:
        """The output of a block for all samples, a few at a time."""
        size = self._batch or BATCH
        count = len(next(iter(given.values())))
        parts = (
            {name: tensor[at : at + size] for name, tensor in given.items()} for at in range(0, count, size)
        )
        return torch.cat([_output(self._network, block, reads, one) for one in parts])


def _output(network: Network, block: Block, reads: Reads, given: Values) -> Tensor:
    """What a block gives: its tensor, or the network's outputs side by side, each sample one row."""
    ends = network.run(given, block.end, reads)
    if len(ends) == 1:
        return ends[block.end[0]]
    return torch.cat([ends[name].flatten(1).float() for name in block.end], dim=1)


def learning_target(cpu: Cpu) -> Target:
    """What plans are learned for, whatever engines they are for in the end: only what layers read is quantized."""
    return targets("openvino", cpu)[0]


def adopt(model: Model, plan: Plan, learned: Plan) -> Plan:
    """A plan of the same recipe for another target, with what was learned: all that both of them hold.

    What only this one has, such as the results of layers, keeps its ranges.
    """
    scales = {(one.site.range_of, one.qtype): one.scale for one in learned.activations}
    activations = tuple(
        replace(one, scale=scales.get((one.site.range_of, one.qtype), one.scale)) for one in plan.activations
    )
    inputs, theirs = inputs_of(activations), inputs_of(learned.activations)
    infos = {layer.node: layer for layer in model.info.layers}
    by_node = {layer.node: layer for layer in learned.layers}
    layers, norms = [], learned.norms
    for layer in plan.layers:
        found, activation = by_node.get(layer.node), inputs.get(layer.node)
        if found is None or not _alike(layer, found, activation, theirs.get(layer.node)):
            layers.append(layer)
            norms = ()  # they are those of a model in which this layer is rounded in another way
            continue
        weights, bias = found.weights, found.bias
        if weights and bias is not None and activation is not None:
            first, bias = with_bias(infos[layer.node], weights[0], bias.values, activation, plan.target)
            weights = (first, *weights[1:])
        layers.append(replace(layer, weights=weights, bias=bias))
    return replace(plan, layers=tuple(layers), activations=activations, norms=norms)


def _alike(
    a: LayerPlan, b: LayerPlan, read_by_a: ActivationPlan | None, read_by_b: ActivationPlan | None
) -> bool:
    """One layer's weights are of one kind in both plans, and meet activations that are divided by the same."""
    divisors = [None if one is None else one.smoothing for one in (read_by_a, read_by_b)]
    same_divisors = divisors[0] is divisors[1] or (
        divisors[0] is not None and divisors[1] is not None and np.array_equal(divisors[0], divisors[1])
    )
    schemes = [[weight.scheme for weight in layer.weights] for layer in (a, b)]
    return same_divisors and schemes[0] == schemes[1] and a.float_reason == b.float_reason
