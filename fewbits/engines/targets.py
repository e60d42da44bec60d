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
    activation_qtype="uint8",  # as for ONNX Runtime; int8 ones compute the same, as fast
    quantize_outputs=False,  # it fuses the requantization of the next input by itself
    quantize_residuals=False,  # the sum is fused in float, which keeps 2 to 3 dB
    # Pooling codes is faster and padding is fused. Moving codes through other operators gains nothing (up to 5 %
    # slower): floats are moved and quantized in one go.
    moves_through=frozenset(("MaxPool", "Pad")),
    repeat_after_layout=False,  # one pair is enough: it moves the quantization through them by itself
    dynamic_int8=False,  # the codes are multiplied in float: 1.3 times slower than float
    rounds_activations=True,  # dynamic quantization in groups: twice as fast as float, at about 45 dB
    weight_forms=(
        *((qtype, "cast_mul") for qtype in ("int8", "int4", "int3", "int2", "fp16", "bf16")),
        ("int4 in groups", "dequantize"),
    ),
    # "expects Constant for port 4": beside quantized activations it keeps Cast and Mul (2026.4)
    constant_recurrent=True,
    wrong_odd_sums=True,  # in bf16 (2026.4): 21 dB for 257 terms, 51 for 256 or 258
    activation_bits=(8, 4),  # 4: brought back to float in front of the product
)

TARGETS: dict[str, tuple[Target, ...]] = {
    "openvino": (
        _OPENVINO,
        # Small convolutional nets gain up to a tenth when residual sums run on codes too; shortcuts that are sliced
        # must then be sliced as codes, or each is brought back and quantized anew (ResNet-20: 6 % of its time).
        replace(
            _OPENVINO,
            placement="everywhere",
            quantize_outputs=True,
            quantize_residuals=True,
            moves_through=frozenset(("MaxPool", "Pad", "Slice")),
        ),
    ),
    "onnxruntime": (
        Target(
            engine="onnxruntime",
            placement="everywhere",
            activation_qtype="uint8",  # of int8 ones, sums and products run in float: 2 to 2.6 times slower
            # QLinearConv needs a quantized output. Else the convolution runs in float and its weights are brought
            # back every time: twice as slow as float.
            quantize_outputs=True,
            quantize_residuals=True,  # QLinearAdd; else codes are brought back and forth, and a sixth slower
            moves_through=frozenset(MOVERS),
            # It moves quantization through most of them by itself, but runs Flatten on codes only between two pairs of
            # the same scale.
            repeat_after_layout=True,
            dynamic_int8=True,  # MatMulInteger, fused with its scale: twice as fast as float
            dynamic_lstm=True,  # DynamicQuantizeLSTM: 1.2 (128 wide, one step) to 3.9 times as fast as float
            rounds_activations=False,  # only in block-quantized products, whose weights it would round as well
            # Cast and Mul are folded at load. DequantizeLinear is not, and is 1.5 (products) to 1.9 times slower
            # (convolutions); in blocks of int4 by few rows it is faster than float.
            weight_forms=(
                *((qtype, "cast_mul") for qtype in ("int8", "int4", "int3", "int2", "fp16", "bf16")),
                ("int4 in groups", "dequantize"),
            ),
            activation_bits=(8, 4),  # as for OpenVINO
        ),
    ),
    "litert": (
        Target(
            engine="litert",
            placement="throughout",
            activation_qtype="int8",
            quantize_outputs=True,  # what runs on codes gives codes: converting at every layer is slower than float
            quantize_residuals=True,
            moves_through=frozenset(),  # operators that move values have rows of their own in models/tflite
            repeat_after_layout=False,
            dynamic_int8=True,
            rounds_activations=False,
            # XNNPACK brings the weights back when it loads the file.
            weight_forms=tuple((qtype, "dequantize") for qtype in ("int8", "int4", "fp16")),
            codes_throughout=True,
            integer_only=True,
            activation_bits=(8, 16),
            blocks=False,
        ),
    ),
}
WIDE_SUMS = frozenset(("litert",))
"""Engines that widen codes before they multiply them, on every CPU."""


def targets(engine: str, cpu: Cpu) -> tuple[Target, ...]:
    """The ways of writing files for that engine on that CPU, the most accurate first.

    On a CPU with AVX2 only, 8-bit products are summed in pairs in 16 bits, which saturates; weights then use 7 bits.
    """
    saturates = "avx2" in cpu.isa and "vnni" not in cpu.isa and "amx_int8" not in cpu.isa
    return tuple(
        replace(target, saturates=saturates and engine not in WIDE_SUMS) for target in TARGETS[engine]
    )
