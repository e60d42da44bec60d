"""A weight as codes, standing in a layer where its Parameter stood."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewbits.errors import InputError
from fewbits.modules import kernels
from fewbits.modules.products import FloatProducts, Products
from fewbits.numerics import QTensor, QType, packed_size, unpack
from fewbits.numerics.decoding import decode
from fewbits.numerics.files import PARTS, restored_parameters, stored_parts
from fewbits.numerics.layout import Layout, layout_of
from fewbits.numerics.parameters import Parameters


class CodedWeight(nn.Module):
    """Codes and their parameters as buffers; torch's functions take it for the tensor it stands for.

    A layer keeps its class and its forward: ``F.linear(x, layer.weight)`` finds that the weight has its own way to be
    computed with (``__torch_function__``), and asks its products. A function that they do not know gets the
    dequantized tensor, and so does an operator or a method of a tensor, such as ``layer.weight.T``.

    Attributes:
        row: the format of the codes.
        layout: shape of the tensor, and what shares a scale.
        dtype: of the tensor it stands for; ``module.half()`` changes it, and leaves codes and scales as they are.
        products: how it is multiplied.
        codes, scale, zero_point, free_zero_point, codebook, tensor_scale: the parts as a file holds them (see
            :mod:`fewbits.numerics.files`), packed; None where the format has none.
    """

    codes: Tensor

    def __init__(
        self,
        row: QType,
        layout: Layout,
        parts: Mapping[str, Tensor],
        dtype: torch.dtype,
        products: Products | None = None,
    ) -> None:
        super().__init__()
        self.row, self.layout, self.dtype = row, layout, dtype
        for part in PARTS:
            self.register_buffer(part, parts.get(part))
        self.products = products or FloatProducts()
        self._made: dict[Hashable, Any] = {}

    @classmethod
    def of(cls, q: QTensor, dtype: torch.dtype, products: Products | None = None) -> CodedWeight:
        """The codes of a QTensor, on its device."""
        parts = {part: value.to(q.codes.device) for part, value in stored_parts(q).items()}
        return cls(q.qtype, q.layout, parts, dtype, products)

    @property
    def shape(self) -> torch.Size:
        """Of the tensor it stands for."""
        return torch.Size(self.layout.shape)

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of all parts, which is what a file holds."""
        return sum(part.nbytes for part in self.buffers(recurse=False))

    def check(self) -> None:
        """Raise InputError where parts are missing, or have not the size that the layout needs."""
        needed = packed_size(self.shape.numel(), self.row.bits)
        if self.codes is None or self.codes.dtype != torch.uint8 or self.codes.numel() != needed:
            got = None if self.codes is None else f"{self.codes.numel()} of {self.codes.dtype}"
            raise InputError(f"its codes are {needed} bytes, got {got}")
        for part, value in self.values().items():
            shape = value.shape[:-1] if part == "codebook" else value.shape
            wanted = () if part == "tensor_scale" else self.layout.parameter_shape
            if tuple(shape) != wanted:
                raise InputError(f"its {part} has shape {tuple(shape)}, the layout needs {wanted}")

    def size(self, dim: int | None = None) -> Any:
        """As of a tensor."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """As of a tensor."""
        return len(self.shape)

    def unpacked(self) -> Tensor:
        """The codes in the tensor's shape, one integer each; of 8 bits it is a view."""
        return unpack(self.codes, self.row, self.layout.shape)

    def qtensor(self, name: str | None = None) -> QTensor:
        """The codes as the record that :mod:`fewbits.numerics` works on."""
        return QTensor(
            codes=self.unpacked(),
            qtype=self.row,
            channel_axis=self.layout.channel_axis,
            group_size=self.layout.group_size,
            name=name,
            **self.values(),
        )

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor it stands for, in its own dtype or another."""
        parameters = Parameters.spread(self.layout, self.values())
        return decode(self.unpacked(), self.row, self.layout, parameters, dtype or self.dtype)

    def rows(self, indices: Tensor) -> Tensor:
        """The rows of those numbers (any shape) in its own dtype, [*indices, ...], without unpacking the others."""
        bits = self.shape[1:].numel() * self.row.bits
        if bits % 8 or self.layout.channel_axis != 0:
            return self.dequantize()[indices]
        flat = indices.reshape(-1)
        codes = self.codes.view(self.shape[0], bits // 8).index_select(0, flat).reshape(-1)
        shape = (flat.numel(), *self.shape[1:])
        if not flat.numel():
            return torch.empty((*indices.shape, *self.shape[1:]), dtype=self.dtype, device=self.device)
        layout = layout_of(shape, self.layout.channel_axis, self.layout.group_size)
        parameters = Parameters.spread(self.layout, self.values()).of_channels(flat)
        values = decode(unpack(codes, self.row, shape), self.row, layout, parameters, self.dtype)
        return values.reshape(*indices.shape, *self.shape[1:])

    def int8(self) -> tuple[Tensor, Tensor] | None:
        """Codes int8 [outputs, inputs] and scale float32 [outputs], without copying; None where it has others."""
        return self.once("int8", self._int8)

    def rows_8bit(self) -> tuple[Tensor, Tensor] | None:
        """What :func:`fewbits.modules.kernels.rows_8bit` reads; None where it cannot take the codes."""
        return self.once("8bit", self._rows_8bit)

    def rows_4bit(self) -> tuple[Tensor, int, Tensor] | None:
        """What :func:`fewbits.modules.kernels.rows_4bit` reads; None where it cannot hold the codes."""
        return self.once("4bit", self._rows_4bit)

    def once(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """What a kernel reads, made when it is first used, and again after the codes have moved or changed."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _int8(self) -> tuple[Tensor, Tensor] | None:
        plain = self.row.name == "int8" and self.zero_point is None and self.free_zero_point is None
        if not plain or not self._is_matrix() or self.layout.group_size is not None or self.scale is None:
            return None
        return self.codes.view(torch.int8).view(self.shape), self.scale.expand(self.shape[0])

    def _rows_8bit(self) -> tuple[Tensor, Tensor] | None:
        codes = self.int8()
        return None if codes is None or self.device.type != "cpu" else kernels.packed_8bit(*codes)

    def _rows_4bit(self) -> tuple[Tensor, int, Tensor] | None:
        uniform = self.row.kind in ("int", "ternary", "binary") and self.row.bits <= 4
        if not uniform or not self._is_matrix() or self.device.type != "cpu":
            return None
        group = kernels.group_4bit(self.shape, self.layout.group_size)
        if group is None:
            return None
        codes, given = self.unpacked(), self.values()
        zero = given.get("zero_point", given.get("free_zero_point"))
        if not self.row.signed:
            codes = codes.to(torch.int8) - 8
            zero = (torch.zeros_like(given["scale"]) if zero is None else zero) - 8
        outputs = self.shape[0]

        def spread(parameter: Tensor) -> Tensor:
            return (
                parameter.float().reshape(-1, 1).expand(outputs, 1)
                if parameter.dim() < 2
                else parameter.float()
            )

        packed, scales = kernels.packed_4bit(
            codes, spread(given["scale"]), None if zero is None else spread(zero), group
        )
        return packed, group, scales

    def _is_matrix(self) -> bool:
        """Of two axes, with a scale for each row or one for all."""
        axis = self.layout.channel_axis
        grouped_as_one = axis is None and self.layout.group_size is not None
        return self.dim() == 2 and axis in (None, 0) and not grouped_as_one

    def values(self) -> dict[str, Tensor]:
        """Scale, zero point, codebook and so on, those that the format has, as a QTensor has them."""
        return restored_parameters(self.row, self.layout, dict(self.named_buffers(recurse=False)))

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As of a tensor: another one. (A module that it is part of moves the codes by ``_apply``.)"""
        return self.dequantize().to(*args, **kwargs)

    def extra_repr(self) -> str:
        """Format, shape, and what it is multiplied with."""
        return f"{describe(self.row, self.layout)}, products {self.products.name}"

    def __getattr__(self, name: str) -> Any:
        """What a tensor has and this has not is the dequantized tensor's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or not hasattr(Tensor, name):
                raise
            return getattr(self.dequantize(), name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CodedWeight:
        """Move to another device; of another dtype is only the tensor it stands for."""
        moved = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        for part, value in self._buffers.items():
            if value is not None:
                new = fn(value)
                self._buffers[part] = new if new.dtype == value.dtype else value.to(new.device)
        self.dtype = moved.dtype
        self._made = {}
        if isinstance(self.products, nn.Module):
            self.products._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._buffers["codes"] = kernels.aligned(self.codes)  # they may lie in a file mapped into memory
        self._made = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}}

    @classmethod
    def __torch_function__(
        cls,
        func: Callable,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer for one of torch's functions that got a coded weight for a tensor."""
        kwargs = kwargs or {}
        usual = args[1] if len(args) > 1 else None
        weight = usual if isinstance(usual, CodedWeight) else next(_weights((*args, *kwargs.values())))
        own = weight.products.computes(func)
        if own is not None and (result := own(*args, **kwargs)) is not NotImplemented:
            return result
        return func(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})


def describe(row: QType, layout: Layout) -> str:
    """A format in words, such as ``int4 by axis 0 in groups of 128, [512, 384]``."""
    by = "" if layout.channel_axis is None else f" by axis {layout.channel_axis}"
    groups = "" if layout.group_size is None else f" in groups of {layout.group_size}"
    return f"{row.name}{by}{groups}, {list(layout.shape)}"


def _weights(values: Any) -> Iterator[CodedWeight]:
    for value in values:
        if isinstance(value, CodedWeight):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _weights(value)


def _plain(value: Any) -> Any:
    if isinstance(value, CodedWeight):
        return value.dequantize()
    if isinstance(value, (tuple, list)) and next(_weights(value), None) is not None:
        return [_plain(one) for one in value]
    return value


def _operator(name: str) -> Callable:
    def apply(self: CodedWeight, *others: Any) -> Any:
        return getattr(self.dequantize(), name)(*map(_plain, others))

    return apply


for _name in ("add", "sub", "mul", "truediv", "matmul", "pow"):
    setattr(CodedWeight, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(CodedWeight, f"__r{_name}__", _operator(f"__r{_name}__"))
for _name in (
    "__neg__",
    "__getitem__",
    "__len__",
    "float",
    "double",
    "half",
    "bfloat16",
    "cpu",
    "cuda",
    "type",
):
    setattr(CodedWeight, _name, _operator(_name))
