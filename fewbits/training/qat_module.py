"""Quantization-aware training: a plan's quantizers in a model's graph, as a module that any loop can train."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewbits.decide import decide
from fewbits.engines.cpu import cpu
from fewbits.engines.engine import EngineSettings, written_for, yardstick
from fewbits.engines.targets import targets
from fewbits.errors import InputError
from fewbits.learn import SPENT, Lesson, adopt, learning_target
from fewbits.learnable import Kinds, Learnable
from fewbits.methods.reconstruction import Spent
from fewbits.models.model import Model, open_model
from fewbits.models.network import UnsupportedError
from fewbits.numerics import find
from fewbits.observe import observe
from fewbits.planning.plan import Plan
from fewbits.planning.recipe import EFFORTS, Effort, Recipe, assign, fitted, read_recipe
from fewbits.planning.target import Target
from fewbits.samples import Samples, open_samples
from fewbits.source import Arch, open_source
from fewbits.threads import one_torch_thread
from fewbits.training.fake_quantize import (
    TrainedBias,
    TrainedBook,
    TrainedSign,
    TrainedStep,
    TrainedWeight,
    pruned,
)
from fewbits.training.loop import one_device
from fewbits.training.quantized import refuse_quantized

if TYPE_CHECKING:
    from fewbits.models.torch.structure import Structure

SAME_NUMBERS = 1e-3  # the same calibration on another machine differs by less, zero points by more
KINDS = Kinds(TrainedWeight, TrainedBook, TrainedSign, TrainedStep, TrainedBias)


def qat(
    module: nn.Module | str | Path,
    recipe: str | Recipe = "w8a8",
    data: Any = None,
    *,
    arch: Arch | None = None,
    engine: str = "onnxruntime",
    exclude: Sequence[str] = (),
    effort: Effort = "fast",
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> QatModule:
    """A module with a recipe's quantizers in it, to be trained by any loop; see :func:`fewbits.training.fit`.

    It begins where post-training quantization ends. Batch norm is folded into the layer before it, and the folded
    weights and biases are trained, with one step for each activation and one for each channel of a weight.

    Args:
        module: an ``nn.Module``, ``module:factory``, a ``.safetensors`` with ``arch``, or an ``.onnx`` file. It is left
            alone; what comes back is on its device.
        recipe: a preset, a path in TOML, or a Recipe.
        data: samples to calibrate with, as for :func:`fewbits.compress.compress`; a few hundred do. A recipe of weights
            alone needs some too, the few that the module is exported with.
        arch: as for :func:`fewbits.compress.compress`.
        engine: that :meth:`QatModule.export` writes for.
        exclude: patterns of layer names or operators to keep in float.
        effort: what is spent before on learning block by block, by recipes that do: nothing where ``fast``.
        seed: of that.
        progress: called with a stage of that, the blocks done and their number.

    Raises:
        InputError: a module that is quantized already, is on several devices or cannot be exported; a recipe that does
            not fit, or that leaves nothing to be trained; binary weights where pruning left zeros; an operator that
            cannot be trained (it is named); no data.
    """
    if isinstance(module, QatModule):
        raise InputError(
            "the module is quantized already: it came from qat; train it, or give the float module"
        )
    device = torch.device("cpu")
    if isinstance(module, nn.Module):
        refuse_quantized(module)
        device = one_device(module)
        module = module if device.type in ("cpu", "meta") else copy.deepcopy(module).cpu()
    if data is None:
        raise InputError("there is no data to calibrate with: fb.training.qat(module, recipe, data)")
    if effort not in EFFORTS:
        raise InputError(f"effort is {effort!r}; allowed are {', '.join(EFFORTS)}")
    chosen = recipe if isinstance(recipe, Recipe) else read_recipe(recipe).recipe
    target = targets(written_for(engine).name, cpu())[0]
    with tempfile.TemporaryDirectory(prefix="fewbits-") as scratch, one_torch_thread():
        path, origin = open_source(module, arch, data, None, Path(scratch))
        model = open_model(path)
        chosen = fitted(chosen.excluding(exclude), model.info)
        learning = _Learning(SPENT[effort] if chosen.learn else None, seed, progress)
        shape = _Shape(
            tuple(one.name for one in model.info.inputs), None if origin is None else origin.structure
        )
        try:
            samples = open_samples(data, model.info.inputs)
            plan = _planned(model, chosen, target, samples, Path(scratch), learning)
            _check_zeros(plan)
            student = QatModule(model, plan, shape)
            _check_trains(student, chosen.name, samples)
            return student.to(device)
        except UnsupportedError as error:
            raise InputError(f"{path.name}: cannot be trained: {error}") from error


@dataclass(frozen=True)
class _Shape:
    """How a module is called, and what it gives."""

    inputs: tuple[str, ...]
    structure: Structure | None


class QatModule(nn.Module):
    """A model's graph in torch with a plan's quantizers between its tensors.

    It takes and gives what the original did. Submodules are called like the tensors that they stand for, with slashes
    for dots: ``quantizers.layer1/0/conv1/weight``.
    """

    def __init__(self, model: Model, plan: Plan, shape: _Shape) -> None:
        super().__init__()
        self._model, self._first, self._shape = model, plan, shape
        self._network = model.network()
        self._learnable = Learnable(model, self._network, plan, KINDS)
        named = self._learnable.learned
        self.quantizers = nn.ModuleDict({name.replace(".", "/"): one for name, one in named.items()})

    def forward(self, *tensors: Tensor, **named: Tensor) -> Any:
        """Run with every weight and activation rounded. Raises InputError where the inputs are not the model's."""
        given = dict(zip(self._shape.inputs, tensors, strict=False)) | named
        if len(tensors) > len(self._shape.inputs) or set(given) != set(self._shape.inputs):
            raise InputError(f"inputs are {sorted(given)}; the model takes {', '.join(self._shape.inputs)}")
        outputs = self._network.run(given, self._network.outputs, self._learnable.reads)
        if self._shape.structure is not None:
            return self._shape.structure.put_together(outputs)
        return outputs[self._network.outputs[0]] if len(outputs) == 1 else outputs

    def freeze_ranges(self) -> QatModule:
        """Activations keep the steps that they have; weights and their steps go on training."""
        for one in self.quantizers.values():
            if isinstance(one, TrainedStep):
                one.requires_grad_(False)
        return self

    def freeze_steps(self) -> QatModule:
        """Activations and weights keep the steps that they have; codes, codebooks and biases go on training."""
        for one in self.quantizers.values():
            if isinstance(one, TrainedWeight):
                one.stretch.requires_grad_(False)
        return self.freeze_ranges()

    @property
    def plan(self) -> Plan:
        """The plan with what was learned."""
        return self._learnable.plan()

    def export(self, path: str | Path) -> Path:
        """Write the ``.onnx`` of the main job with the learned codes, and read it back; its folder is made.

        Before that, the steps of sums are moved by a part in 1,000 at most, for good, to where engines round them as
        the module does.

        Raises:
            InputError: a number is NaN or infinite.
            VerificationError: the file does not hold the plan.
        """
        broken = [name for name, value in self.named_parameters() if not bool(torch.isfinite(value).all())]
        if broken:
            raise InputError(f"{broken[0]!r} holds NaN or infinity; nothing is written")
        self._learnable.clear_ties()
        path, plan = Path(path), self.plan
        path.parent.mkdir(parents=True, exist_ok=True)
        self._model.write(plan, path)
        self._model.read_back(path, plan)
        return path

    def get_extra_state(self) -> Tensor:
        """What the other tensors of the state are made for, and are wrong with another: codes allowed, zero points,
        smoothing; float32 [numbers]."""
        numbers = list[float]()
        for one in self._first.activations:
            row = find(one.qtype)
            numbers += row.qmin, row.qmax, one.zero_point, *(() if one.smoothing is None else one.smoothing)
        for scaling in self._first.scalings:
            numbers += (*scaling.divisor,)
        for weight in self._first.weights.values():
            if weight.codes is not None:
                numbers += weight.codes.qtype.qmin, weight.codes.qtype.qmax
        return torch.tensor(numbers, dtype=torch.float32)

    def set_extra_state(self, state: Tensor) -> None:
        """Raises InputError where a state that is loaded came of another plan."""
        mine = self.get_extra_state()
        if state.shape != mine.shape or not torch.allclose(state.cpu().float(), mine, rtol=SAME_NUMBERS):
            raise InputError(
                "the state came of a module, recipe or calibration data other than this student; call qat with the "
                "ones that its student was made with, and load it then"
            )

    def __deepcopy__(self, memo: Any) -> QatModule:
        twin = QatModule(self._model, self._first, self._shape)
        twin.load_state_dict(self.state_dict())
        for one, mine in zip(twin.parameters(), self.parameters(), strict=True):
            one.requires_grad_(mine.requires_grad)
        wide = any(one.dtype == torch.float64 for one in self.parameters())
        return (twin.double() if wide else twin).to(one_device(self)).train(self.training)


@dataclass(frozen=True)
class _Learning:
    """What is learned block by block before training begins; nothing where ``spent`` is None."""

    spent: Spent | None
    seed: int
    progress: Callable[[str, int, int], None]


def _check_zeros(plan: Plan) -> None:
    """Binary weights have no zero, and would undo what pruning did."""
    for layer in plan.layers:
        for weight in layer.weights:
            codes = weight.codes
            if codes is not None and codes.qtype.kind == "binary" and pruned(torch.from_numpy(weight.values)):
                raise InputError(
                    f"layer {layer.name!r}: has weights that pruning made zero, and binary ones have no zero; take "
                    "'ternary', or exclude it"
                )


def _check_trains(student: QatModule, recipe: str, samples: Samples) -> None:
    """Raises UnsupportedError where a part of it does not run in torch, InputError where nothing would be trained."""
    with torch.no_grad():
        student(**{name: torch.tensor(array) for name, array in samples.one_run().items()})
    if not list(student.parameters()):
        raise InputError(
            f"recipe {recipe!r}: leaves nothing to be trained: training changes weights in integer codes or codebooks, "
            "and the steps of activations; take a recipe with some, such as 'w8a8', for layers that are not excluded"
        )


def _planned(
    model: Model, recipe: Recipe, target: Target, samples: Samples, folder: Path, learning: _Learning
) -> Plan:
    """What post-training quantization makes of it, which is where training begins."""
    assigned = assign(recipe, model.info)
    learned_for = learning_target(cpu())
    wanted = [model.wanted(assigned, one) for one in (target, learned_for)]
    tensors = list(dict.fromkeys(name for one in wanted for name in one.tensors))
    path = folder / "observed.onnx"
    model.tapped(tensors, path)
    engine = yardstick(model.format)
    compiled = engine.compile(path, EngineSettings(engine.name, "f32", cpu().physical_cores))
    stats = observe(
        samples.session(compiled),
        samples,
        tensors,
        {name for one in wanted for name in one.rows},
        {name for one in wanted for name in one.samples},
        samples.batch,
    )

    def decided(target: Target) -> Plan:
        return decide(recipe, assigned, model.place(assigned, target), stats, target, model.weight)

    plan = decided(target)
    if learning.spent is None:
        return plan
    lesson = Lesson(model, decided(learned_for), samples, learning.spent)
    learned, _ = lesson.learn(learning.seed, partial(learning.progress, f"learn {recipe.name}"))
    return adopt(model, plan, learned)
