"""What one engine runs fast and right: the row of a capability table that ``place`` and ``encode`` read."""

from dataclasses import dataclass
from typing import Literal

WeightForm = Literal["dequantize", "cast_mul", "matmul_nbits"]
"""How weight-only codes are written: DequantizeLinear; Cast and Mul; or com.microsoft.MatMulNBits."""


@dataclass(frozen=True)
class Target:
    """One engine at one compute precision.

    Attributes:
        engine: the engine's name.
        precision: what the float part is computed in: ``f32`` or ``bf16``.
        activation_qtype: the format static int8 activations are written in.
        static_int8: static int8 is run by int8 kernels.
        quantize_outputs: a convolution becomes an int8 kernel only where its output is quantized as well.
        residual_inputs: which inputs of a residual Add get Q/DQ: ``all`` of them, only the ``skip`` (the one
            that no convolution feeds directly, whose sum the engine fuses), or ``none``.
        repeat_after_layout: an operator that only moves values is run on codes where its output is quantized
            again with its input's range; otherwise the engine moves the quantization through it by itself.
        dynamic_int8: dynamic activations are run by int8 kernels.
        weight_forms: per weight format, the form that this engine runs fastest, or none where it gains nothing.
        saturates: 8-bit products can overflow 16-bit sums (AVX2 without VNNI), so weights use 7 bits.
    """

    engine: str
    precision: str
    activation_qtype: str
    static_int8: bool
    quantize_outputs: bool
    residual_inputs: Literal["all", "skip", "none"]
    repeat_after_layout: bool
    dynamic_int8: bool
    weight_forms: tuple[tuple[str, WeightForm], ...]
    saturates: bool = False

    def weight_form(self, qtype: str) -> WeightForm | None:
        """The form for weights of that format; None where this engine has none worth writing."""
        return dict(self.weight_forms).get(qtype)
