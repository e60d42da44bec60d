"""The capability tables: how files are written for each engine, as measured, with the reason beside each entry."""

from __future__ import annotations

from dataclasses import replace

from fewbits.engines.cpu import Cpu
from fewbits.planning.target import Target

MOVERS = (
    "MaxPool",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Identity",
    "Transpose",
    "Slice",
    "Expand",
)

_OPENVINO = Target(
    engine="openvino",
    placement="inputs",
    activation_qtype="uint8",  # with int8 ones it may refuse the file
    quantize_outputs=False,  # it fuses the requantization of the next input by itself
    quantize_residuals=False,  # the sum is fused in float, which keeps 2 to 3 dB
    # Moving codes about takes longer than moving floats, which it fuses with what reads them.
    moves_through=frozenset(("MaxPool", "Pad")),
    repeat_after_layout=False,  # low-precision transformations move the quantization through layout operators
    dynamic_int8=False,  # DynamicQuantizeLinear runs slower than float
    rounds_activations=True,  # dynamic quantization in groups: faster than float, at about 45 dB
    weight_forms=(("int8", "cast_mul"), ("int4", "dequantize"), ("fp16", "cast_mul"), ("bf16", "cast_mul")),
    wrong_odd_sums=True,  # in bf16 (2026.4): 21 dB for 257 terms, 51 for 256 or 258
)

TARGETS: dict[str, tuple[Target, ...]] = {
    "openvino": (
        _OPENVINO,
        # Small convolutional nets gain up to a tenth when residual sums run on codes too.
        replace(_OPENVINO, placement="everywhere", quantize_outputs=True, quantize_residuals=True),
    ),
    "onnxruntime": (
        Target(
            engine="onnxruntime",
            placement="everywhere",
            activation_qtype="uint8",  # int8 activations run about 3 times slower
            quantize_outputs=True,  # QLinearConv needs a quantized output; else the convolution runs in float
            quantize_residuals=True,  # QLinearAdd; else codes are brought back and forth
            moves_through=frozenset(MOVERS),
            repeat_after_layout=True,  # a layout operator runs on codes only between two pairs of the same scale
            dynamic_int8=True,  # MatMulInteger, fused with its scale
            rounds_activations=False,  # only in block-quantized products, whose weights it would round as well
            # DequantizeLinear is not folded at load, and slower than float; Cast and Mul are.
            weight_forms=(
                ("int8", "cast_mul"),
                ("int4", "dequantize"),
                ("fp16", "cast_mul"),
                ("bf16", "cast_mul"),
            ),
        ),
    ),
}


def targets(engine: str, cpu: Cpu) -> tuple[Target, ...]:
    """The ways of writing files for that engine on that CPU, the most accurate first.

    On a CPU with AVX2 only, 8-bit products are summed in pairs in 16 bits, which saturates; weights then use 7 bits.
    """
    saturates = "avx2" in cpu.isa and "vnni" not in cpu.isa and "amx_int8" not in cpu.isa
    return tuple(replace(target, saturates=saturates) for target in TARGETS[engine])
