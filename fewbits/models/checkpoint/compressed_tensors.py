"""The compressed-tensors format, as transformers and others read it: integers packed into int32, or float8.

Source: https://github.com/vllm-project/compressed-tensors, formats ``pack-quantized`` and ``naive-quantized``.

transformers (5.x) has two ways to read it. The one that keeps modules compressed until they run looks for a ``weight``
that packed modules do not have, and so fails on embeddings and on T5 and others. With ``dequantize`` in the config it
brings every weight back while it loads, which works for every architecture, tied weights and experts included; but it
reads all weights by the first scheme. So all weights of a checkpoint have one scheme here, and ``dequantize`` is set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewbits.methods.rounding import round_weight
from fewbits.models.checkpoint.compiled import CompiledGroups, compiled_groups
from fewbits.models.checkpoint.form import Held, Part
from fewbits.models.checkpoint.stored import DTYPES
from fewbits.numerics import QTensor, QType, find, unpack
from fewbits.numerics.packing import pack_codes
from fewbits.planning.model_info import LayerInfo, WeightInfo
from fewbits.planning.scheme import Scheme

FLOAT8 = "fp8_e4m3fn"
SCALE_TYPES = {"F64": None, "F32": None, "F16": "fp16", "BF16": "bf16"}
"""Scales are stored as the weights were: what transformers computes the products in."""
WORD = 32  # bits; codes of a row are one stream, cut into words, the first code in the lowest bits


class CompressedTensors:
    """See :class:`fewbits.models.checkpoint.form.Form`."""

    name = "compressed-tensors"
    own_names = False

    def why_not(self, layer: LayerInfo, scheme: Scheme) -> str | None:
        """See :meth:`Form.why_not`."""
        row = find(scheme.qtype)
        weight = layer.weights[0]
        if layer.kind not in ("linear", "embedding") or len(weight.shape) != 2:
            return "compressed-tensors holds linear layers and embeddings"
        if not weight.name.endswith(".weight"):
            return "compressed-tensors holds tensors called weight"
        if row.name == FLOAT8 and scheme.per != "group":
            return None
        if row.kind != "int" or row.bits > 8:
            return f"compressed-tensors holds integers of up to 8 bits and {FLOAT8}, not {scheme}"
        if scheme.symmetric and not row.signed:
            return "compressed-tensors has symmetric codes around zero only"
        if scheme.range == "half_quadratic":
            return "compressed-tensors has zero points that are codes"
        if not scheme.symmetric and scheme.per == "tensor":
            return "compressed-tensors packs zero points per channel or group"
        return None

    def parts(self, weight: WeightInfo, dtype: str, scheme: Scheme) -> tuple[Part, ...]:
        """See :meth:`Form.parts`."""
        rows, columns = weight.shape
        row = find(scheme.qtype)
        scale_dtype = "F32" if SCALE_TYPES[dtype] is None else dtype
        groups = columns // scheme.group_size if scheme.group_size else 1
        shape = (1,) if scheme.per == "tensor" else (rows, groups)
        row_bits = None if scheme.per == "tensor" else groups * DTYPES[scale_dtype].itemsize * 8
        scale = Part(f"{weight.name}_scale", scale_dtype, shape, row_bits)
        if row.name == FLOAT8:
            return Part(weight.name, "F8_E4M3", (rows, columns), columns * 8), scale
        words = -(-columns * row.bits // WORD)
        packed = Part(f"{weight.name}_packed", "I32", (rows, words), words * WORD)
        whole = Part(f"{weight.name}_shape", "I64", (2,), None)
        if scheme.symmetric:
            return packed, scale, whole
        zeros = -(-rows * row.bits // WORD)
        return (
            packed,
            scale,
            whole,
            Part(f"{weight.name}_zero_point", "I32", (zeros, groups), groups * row.bits),
        )

    def round(self, values: Tensor, weight: WeightInfo, dtype: str, scheme: Scheme) -> QTensor:
        """See :meth:`Form.round`."""
        row = _row(dtype, scheme)
        # Groups are many and short: few ranges are worth a try, and all of them would take longer than all else.
        search = "mse" if scheme.group_size is None or row.kind != "int" else "likely"
        return round_weight(values, scheme, 0, weight.name, row, search)

    def encode(self, weight: WeightInfo, q: QTensor) -> Mapping[str, Tensor]:
        """See :meth:`Form.encode`."""
        assert q.scale is not None
        name, rows = weight.name, q.codes.shape[0]
        scale = q.scale.reshape(-1, 1) if q.scale.dim() == 1 else q.scale
        scale = scale.reshape(1) if q.scale.dim() == 0 else scale
        scale = scale.to(
            {"fp16": torch.float16, "bf16": torch.bfloat16}.get(q.qtype.scale_type or "", scale.dtype)
        )
        parts = {f"{name}_scale": scale.contiguous()}
        if q.qtype.kind == "float":
            return parts | {name: q.codes.view(torch.float8_e4m3fn)}
        parts |= {
            f"{name}_packed": _words(q.codes, q.qtype),
            f"{name}_shape": torch.tensor(weight.shape),
        }
        if q.zero_point is not None:
            zeros = q.zero_point.reshape(rows, -1).t()
            parts[f"{name}_zero_point"] = _words(zeros, q.qtype).t().contiguous()
        return parts

    def compiled(self, dtype: str, scheme: Scheme) -> CompiledGroups | None:
        """See :meth:`Form.compiled`."""
        return compiled_groups(_row(dtype, scheme), scheme) if dtype == "BF16" else None

    def decode(
        self, weight: WeightInfo, dtype: str, scheme: Scheme, parts: Mapping[str, Tensor], rows: int
    ) -> tuple[QTensor, Tensor]:
        """See :meth:`Form.decode`."""
        name, columns = weight.name, weight.shape[1]
        row = _row(dtype, scheme)
        scale, zero_point = parts[f"{name}_scale"], None
        if row.kind == "float":
            codes = parts[name].view(torch.uint8)
            levels = parts[name].to(scale.dtype)
        else:
            codes = _codes(parts[f"{name}_packed"], row, columns)
            levels = codes.to(scale.dtype)
        groups = -1 if scheme.group_size is None else scheme.group_size
        levels = levels.reshape(rows, -1, groups if groups > 0 else columns)
        if f"{name}_zero_point" in parts:
            packed = parts[f"{name}_zero_point"].t().contiguous()
            zero_point = _codes(packed, row, rows).t().int()
            levels -= zero_point.to(scale.dtype)[..., None]
        values = levels.mul_(scale if scale.dim() == 1 else scale[..., None]).reshape(rows, columns)
        shape = {"tensor": (), "channel": (rows,), "group": tuple(scale.shape)}[scheme.per]
        q = QTensor(
            codes=codes,
            qtype=row,
            scale=scale.float().reshape(shape),
            zero_point=None if zero_point is None else zero_point.reshape(shape).contiguous(),
            channel_axis=None if scheme.per == "tensor" else 0,
            group_size=scheme.group_size,
            name=name,
        )
        return q, values

    def config(self, layers: Sequence[tuple[LayerInfo, Scheme | None]]) -> Mapping[str, Any]:
        """See :meth:`Form.config`; all schemes are the same one."""
        (scheme,) = {scheme for _, scheme in layers if scheme is not None}
        row = find(scheme.qtype)
        weights: dict[str, Any] = {
            "num_bits": row.bits,
            "type": row.kind,
            "symmetric": scheme.symmetric,
            "strategy": scheme.per,
        }
        if scheme.group_size is not None:
            weights["group_size"] = scheme.group_size
        form = "naive-quantized" if row.name == FLOAT8 else "pack-quantized"
        targets = list(dict.fromkeys(layer.op for layer, one in layers if one is not None))
        group = {"targets": targets, "weights": weights, "format": form}
        quantization = {
            "quant_method": self.name,
            "format": form,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": [layer.name for layer, one in layers if one is None and layer.op in targets],
            "dequantize": True,
        }
        return {"quantization_config": quantization}

    def file(self, name: str) -> str:
        """See :meth:`Form.file`."""
        return name

    def metadata(self, weights: Sequence[Held]) -> Mapping[str, str]:
        """See :meth:`Form.metadata`; the config says all."""
        return {}


def _row(dtype: str, scheme: Scheme) -> QType:
    """The format of the codes, with the type that scales are stored in."""
    row, scale_type = find(scheme.qtype), SCALE_TYPES[dtype]
    return row if scale_type is None else replace(row, name=f"{row.name}_{scale_type}", scale_type=scale_type)


def _words(codes: Tensor, row: QType) -> Tensor:
    """Codes [rows, columns] as int32 words [rows, words]; each row is a stream of its own."""
    rows, columns = codes.shape
    fields = _shifted(codes, row)
    if missing := -columns % WORD:
        fields = torch.nn.functional.pad(fields, (0, missing))
    words = pack_codes(fields, find(f"uint{row.bits}")).view(torch.int32).reshape(rows, -1)
    return words[:, : -(-columns * row.bits // WORD)].contiguous()


def _codes(words: Tensor, row: QType, columns: int) -> Tensor:
    """The inverse: int32 words [rows, words] as codes [rows, columns] in the row's code dtype."""
    rows, padded = words.shape[0], columns + -columns % WORD
    if missing := padded * row.bits // WORD - words.shape[1]:
        words = torch.nn.functional.pad(words, (0, missing))
    stream = words.contiguous().view(torch.uint8).reshape(-1)
    fields = unpack(stream, find(f"uint{row.bits}"), (rows, padded))[:, :columns]
    if not row.signed:
        return fields.contiguous()
    return (fields ^ 128 if row.bits == 8 else fields - (1 << (row.bits - 1))).contiguous().view(torch.int8)


def _shifted(codes: Tensor, row: QType) -> Tensor:
    """Codes as unsigned integers; the lowest signed one becomes zero."""
    if not row.signed:
        return codes
    codes = codes.contiguous().to(torch.int8)
    return codes.view(torch.uint8) ^ 128 if row.bits == 8 else codes + (1 << (row.bits - 1))
