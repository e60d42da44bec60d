"""A look inside modules: what each weight is, what it weighs, and how two modules' outputs differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fewbits.errors import InputError
from fewbits.tables import plain_table, short

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

    from fewbits.modules.weight import CodedWeight
    from fewbits.numerics import QuantizationError

SHOWN_CODES = 8  # of the first rows of a weight
SHOWN_ROWS = 4


@dataclass(frozen=True, eq=False)
class WeightView:
    """One coded weight beside the one that it was made from.

    Attributes:
        name: in the module, such as ``encoder.fc.weight``.
        layer: the class of the layer that holds it.
        weight: the codes as they lie in the module.
        original: float, the weight it was made from; None where the original module was not given.
    """

    name: str
    layer: str
    weight: CodedWeight
    original: Tensor | None = None

    @cached_property
    def codes(self) -> Tensor:
        """Integers in the weight's shape."""
        return self.weight.unpacked()

    @property
    def scale(self) -> Tensor | None:
        """float32, one for each channel or group, or one in all."""
        return self.weight.values().get("scale")

    @property
    def zero_point(self) -> Tensor | None:
        """int32 in the shape of the scale; None where zero has the code 0."""
        return self.weight.values().get("zero_point")

    @property
    def codebook(self) -> Tensor | None:
        """float32 entries, ascending, of a learned codebook."""
        return self.weight.values().get("codebook")

    @property
    def channel_axis(self) -> int | None:
        """The axis that has a scale for each index; None where one serves all."""
        return self.weight.layout.channel_axis

    @property
    def group_size(self) -> int | None:
        """Elements that share a scale within a channel."""
        return self.weight.layout.group_size

    @property
    def scheme(self) -> str:
        """In words, such as ``int4, symmetric, by axis 0 in groups of 128``."""
        kind = (
            ""
            if self.weight.row.kind != "int"
            else ", symmetric"
            if self.zero_point is None
            else ", asymmetric"
        )
        axis = "one scale" if self.channel_axis is None else f"by axis {self.channel_axis}"
        groups = "" if self.group_size is None else f" in groups of {self.group_size}"
        scaled = "" if self.scale is None and self.codebook is None else f", {axis}{groups}"
        return f"{self.weight.row.name}{kind}{scaled}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return tuple(self.weight.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and the rest."""
        return self.weight.nbytes

    @property
    def bytes_per_element(self) -> float:
        """All bytes over the elements; the codes alone have ``bits / 8``."""
        return self.nbytes / math.prod(self.shape)

    @property
    def original_bytes_per_element(self) -> int:
        """Of the float weight."""
        return self.weight.dtype.itemsize

    @cached_property
    def error(self) -> QuantizationError | None:
        """How far the codes are from the original, where that was given."""
        return None if self.original is None else self.weight.qtensor(self.name).error(self.original)

    def show(self, console: Console) -> None:
        """Print the first codes, their scales, and the original's numbers beside what the codes stand for."""
        from rich.text import Text

        rows = (
            self.codes.flatten(1)[:SHOWN_ROWS, :SHOWN_CODES]
            if self.codes.dim() > 1
            else self.codes[None, :SHOWN_CODES]
        )
        values = self.weight.dequantize().reshape(len(self.codes) if self.codes.dim() > 1 else 1, -1)
        original = None if self.original is None else self.original.detach().reshape(values.shape)
        console.print(Text(f"{self.name}  {self.layer} {list(self.shape)}", style="bold"))
        size = f"{self.bytes_per_element:.3g} bytes per element, {self.original_bytes_per_element} before"
        console.print(Text(f"{self.scheme}; {size}; products {self.weight.products.name}"))
        table = plain_table(("row", ""), tuple(str(column) for column in range(rows.shape[1])))
        for number, codes in enumerate(rows.tolist()):
            table.add_row(str(number), "codes", *map(str, codes))
            table.add_row("", "stand for", *map(short, values[number, : rows.shape[1]].tolist()))
            if original is not None:
                table.add_row("", "original", *map(short, original[number, : rows.shape[1]].tolist()))
        console.print(table)
        for word in ("scale", "zero_point", "codebook"):
            parameter = getattr(self, word)
            if parameter is not None:
                first = ", ".join(map(short, parameter.reshape(-1)[:SHOWN_CODES].tolist()))
                more = ", ..." if parameter.numel() > SHOWN_CODES else ""
                console.print(Text(f"{word} {list(parameter.shape)}: {first}{more}"))
        if self.error is not None:
            e = self.error
            console.print(
                Text(f"error: mean {short(e.mean)}, largest {short(e.max)}, SQNR {e.sqnr_db:.1f} dB")
            )


@dataclass(frozen=True, eq=False)
class ModuleView:
    """What a module holds.

    Attributes:
        weights: the coded ones.
        bytes_by_dtype: of all parameters and buffers, each once: codes by format, the rest by dtype.
        original_bytes: of the original's, where it was given.
        left_in_float: what has two axes or more and is not coded, and why.
        notes: what is computed otherwise than asked.
    """

    weights: tuple[WeightView, ...]
    bytes_by_dtype: Mapping[str, int]
    original_bytes: int | None
    left_in_float: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters and buffers."""
        return sum(self.bytes_by_dtype.values())

    def __getitem__(self, name: str) -> WeightView:
        """A coded weight by its name or its layer's. Raises InputError where there is none."""
        for weight in self.weights:
            if name in (weight.name, weight.name.rpartition(".")[0]):
                return weight
        names = ", ".join(weight.name for weight in self.weights[:SHOWN_CODES])
        raise InputError(f"no coded weight {name!r}; there are {names or 'none'}")

    def show(self, console: Console) -> None:
        """Print all weights, the bytes by dtype, and what stays in float."""
        from rich.text import Text

        from fewbits.report import words

        table = plain_table(
            ("weight", "layer", "scheme"), ("shape", "bytes", "per element", "before", "SQNR")
        )
        for one in self.weights:
            sqnr = words.NOTHING if one.error is None else f"{one.error.sqnr_db:.1f} dB"
            shape = "x".join(map(str, one.shape))
            per = (f"{one.bytes_per_element:.3g}", str(one.original_bytes_per_element))
            row = (one.name, one.layer, one.scheme, shape, words.size(one.nbytes), *per, sqnr)
            table.add_row(*map(Text, row))
        console.print(table)
        footprint = ", ".join(f"{dtype} {words.size(size)}" for dtype, size in self.bytes_by_dtype.items())
        before = "" if self.original_bytes is None else f" of {words.size(self.original_bytes)}"
        console.print(Text(f"{words.size(self.nbytes)}{before}: {footprint}", style="bold"))
        for name, why in self.left_in_float.items():
            console.print(Text(f"in float: {name}: {why}", style="dim"))
        for note in self.notes:
            console.print(Text(note, style="dim"))

    def __str__(self) -> str:
        return printed(self)


@dataclass(frozen=True)
class OutputDifference:
    """How far one output of B lies from A's, over all inputs: means and maxima of magnitudes.

    Attributes:
        name: where it is in what the modules give; empty for the only one.
        mean, maximum: of the difference of values (of logits, where it is logits).
        mean_probability, maximum_probability: of the difference of their softmax over the last axis.
        top_class: share of rows whose largest entry is the same one.
        sqnr_db: energy of A's values over that of the difference.
    """

    name: str
    mean: float
    maximum: float
    mean_probability: float
    maximum_probability: float
    top_class: float
    sqnr_db: float


@dataclass(frozen=True)
class ModuleComparison:
    """Two modules side by side: bytes by dtype of each, and how the outputs differ."""

    a: ModuleView
    b: ModuleView
    outputs: tuple[OutputDifference, ...]
    inputs: int

    def show(self, console: Console) -> None:
        """Print both."""
        from rich.text import Text

        from fewbits.report import words

        sizes = plain_table(("", "dtype"), ("bytes",))
        for name, side in (("A", self.a), ("B", self.b)):
            for dtype, size in side.bytes_by_dtype.items():
                sizes.add_row(name, dtype, words.size(size))
            sizes.add_row(name, "all", words.size(side.nbytes), style="bold")
        console.print(sizes)
        heads = ("mean |B-A|", "max |B-A|", "of probabilities", "max", "same top class", "SQNR")
        table = plain_table(("output",), heads)
        for one in self.outputs:
            numbers = (one.mean, one.maximum, one.mean_probability, one.maximum_probability)
            cells = (one.name or words.NOTHING, *map(short, numbers), f"{100 * one.top_class:.2f} %")
            table.add_row(*map(Text, (*cells, f"{one.sqnr_db:.1f} dB")))
        console.print(table)

    def __str__(self) -> str:
        return printed(self)


def printed(view: Any) -> str:
    """What ``show`` prints, as text of fixed width."""
    import io

    from rich.console import Console

    text = io.StringIO()
    view.show(Console(file=text, width=140))
    return text.getvalue()


def look(module: nn.Module, original: nn.Module | None = None) -> ModuleView:
    """What a module holds, beside the one that it was made from where that is given.

    Raises:
        InputError: the original has no such weights.
    """
    from fewbits.modules.convert import LEFT
    from fewbits.modules.files import coded_weights
    from fewbits.modules.half import NOTES

    views = []
    for weight, names in coded_weights(module).items():
        owner = module.get_submodule(names[0].rpartition(".")[0])
        before = None if original is None else _parameter(original, names[0], weight)
        views.append(WeightView(names[0], type(owner).__name__, weight, before))
    return ModuleView(
        tuple(views),
        bytes_by_dtype(module),
        None if original is None else sum(bytes_by_dtype(original).values()),
        dict(getattr(module, LEFT, {})),
        tuple(getattr(module, NOTES, ())),
    )


def bytes_by_dtype(module: nn.Module) -> dict[str, int]:
    """Bytes of all parameters and buffers, each once: codes by their format, the rest by dtype; the most first."""
    from fewbits.modules.weight import CodedWeight

    sizes: dict[str, int] = {}
    coded = [weight for weight in module.modules() if isinstance(weight, CodedWeight)]
    formats = {id(weight.codes): weight.row.name for weight in coded}
    for value in (*module.parameters(), *module.buffers()):
        name = formats.get(id(value), str(value.dtype).removeprefix("torch."))
        sizes[name] = sizes.get(name, 0) + value.nbytes
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _parameter(original: nn.Module, name: str, weight: CodedWeight) -> Tensor:
    try:
        parameter = original.get_parameter(name)
    except AttributeError:
        raise InputError(
            f"the original has no parameter {name!r}; give the module that this one was made from"
        ) from None
    if parameter.shape != weight.shape:
        raise InputError(
            f"the original's {name!r} is {list(parameter.shape)}, and {list(weight.shape)} here; give the module that "
            "this one was made from"
        )
    return parameter


def compare_modules(a: nn.Module, b: nn.Module, data: Any) -> ModuleComparison:
    """Both modules' outputs for the same inputs, in eval mode, without gradients.

    Args:
        a, b: modules that take the same.
        data: inputs, see :func:`fewbits.modules.inputs.calls`.

    Raises:
        InputError: no inputs; outputs that are nested differently or have no tensors of floats.
    """
    import torch

    from fewbits.modules.inputs import calls

    sums: dict[str, _Sums] = {}
    count = 0
    modes = [(one, one.training) for side in (a, b) for one in side.modules()]
    try:
        a.eval()
        b.eval()
        with torch.no_grad():
            for args, kwargs in calls(data):
                count += 1
                left, right = _outputs(a(*args, **kwargs)), _outputs(b(*args, **kwargs))
                if left.keys() != right.keys() or not left:
                    raise InputError(
                        f"outputs that cannot be compared: A gives {list(left)}, B gives {list(right)}; tensors of "
                        "floats in the same nest are needed"
                    )
                for name in left:
                    sums.setdefault(name, _Sums()).add(left[name], right[name])
    finally:
        for one, training in modes:
            one.training = training
    if not count:
        raise InputError(
            "no inputs to compare with; give a tensor, a tuple or dict of arguments, or batches of them"
        )
    found = tuple(total.difference(name) for name, total in sums.items())
    return ModuleComparison(look(a), look(b), found, count)


def _outputs(nest: Any) -> dict[str, Tensor]:
    from torch import Tensor
    from torch.utils import _pytree as pytree

    leaves, _ = pytree.tree_flatten_with_path(nest)
    return {
        pytree.keystr(path): leaf.float()
        for path, leaf in leaves
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    }


class _Sums:
    """Sums over inputs of one output's differences."""

    def __init__(self) -> None:
        self.elements = self.rows = self.same = 0
        self.total = self.largest = self.probability = self.largest_probability = 0.0
        self.signal = self.noise = 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        import torch

        far = (a - b).abs()
        rows_a, rows_b = (
            one.reshape(-1, one.shape[-1]) if one.dim() else one.reshape(1, 1) for one in (a, b)
        )
        apart = (torch.softmax(rows_a, dim=-1) - torch.softmax(rows_b, dim=-1)).abs()
        self.elements, self.rows = self.elements + far.numel(), self.rows + len(rows_a)
        self.total, self.largest = self.total + float(far.sum()), max(self.largest, float(far.max()))
        self.probability += float(apart.sum())
        self.largest_probability = max(self.largest_probability, float(apart.max()))
        self.same += int((rows_a.argmax(dim=-1) == rows_b.argmax(dim=-1)).sum())
        self.signal += float(a.double().square().sum())
        self.noise += float(far.double().square().sum())

    def _sqnr(self) -> float:
        return 10 * (math.log10(self.signal) - math.log10(self.noise))

    def difference(self, name: str) -> OutputDifference:
        sqnr = math.inf if not self.noise else -math.inf if not self.signal else self._sqnr()
        return OutputDifference(
            name,
            self.total / self.elements,
            self.largest,
            self.probability / self.elements,
            self.largest_probability,
            self.same / self.rows,
            sqnr,
        )
