"""What one engine runs fast and right: the row of a capability table that ``place`` and ``encode`` read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fewbits.numerics import find

if TYPE_CHECKING:
    from fewbits.planning.recipe import Recipe

from fewbits.planning.scheme import Scheme

WeightForm = Literal["dequantize", "widen", "cast_mul", "cast_twice_mul", "look_up"]
"""How codes are written: DequantizeLinear; that behind a Cast to int8, which engines fold, so that int8 kernels run
codes of fewer bits; Cast and Mul; or with a Cast to int32 before, which keeps an engine from multiplying compressed
weights: it brings them back when it loads the file; or Gather from a codebook, which engines fold."""

Way = Literal["codes", "as they come", "rounded", "packed"]
"""How a layer's products are made faster: codes by codes, with activations quantized ahead or as they come, by the file
or by the engine; or weights multiplied as they lie packed in memory."""

SAFE_CODE = (2**15 - 1) // (2 * 255)
"""The largest magnitude of int8 weights, 64, of which two products with uint8 codes always add up within 16 bits."""


@dataclass(frozen=True)
class Target:
    """One way of writing files for one engine.

    Attributes:
        engine: the engine's name.
        placement: a short name for where activations are quantized, among the engine's ways.
        activation_qtype: the format static int8 activations are written in; None where static int8 gains nothing.
        quantize_outputs: results of convolutions are quantized as well, so that what follows reads codes.
        quantize_residuals: both inputs of an Add behind a convolution are quantized.
        moves_through: operators that only move values, which run on codes: quantization goes in front of them.
        repeat_after_layout: an operator that only moves values is run on codes where its output is quantized
            again with its input's range; otherwise the engine moves the quantization through it by itself.
        dynamic_int8: activations quantized at run time are multiplied by int8 kernels.
        dynamic_lstm: so are those of an LSTM.
        rounds_activations: the engine can be told to round the activations of weight-only linear layers as they come.
        weight_forms: per weight format, the form that this engine runs fastest; a format not listed gains nothing.
            ``int4 in groups`` and the like are formats of their own.
        wrong_odd_sums: products of compressed weights come out wrong where the sum has an odd number of terms.
        constant_recurrent: weights of recurrent layers must be constants once the file is loaded, so they are written
            in a form that is brought back then, whatever else the file holds.
        keeps_packed: weight formats that linear layers multiply as they lie in memory: by few rows, faster than float.
        saturates: 8-bit products are added in pairs in 16 bits, which can overflow: where codes are multiplied with
            codes, weights stay within ``SAFE_CODE``.
        codes_throughout: operators hand codes to each other: biases are integers, and nothing is divided on the way.
        integer_only: what a recipe makes static computes on integers alone, and what cannot is an error.
        activation_bits: of static activations that it has kernels for, or that gain nothing but are right.
        blocks: it multiplies weights that have a scale for each of several groups in a channel.
    """

    engine: str
    placement: str
    activation_qtype: str | None
    quantize_outputs: bool
    quantize_residuals: bool
    moves_through: frozenset[str]
    repeat_after_layout: bool
    dynamic_int8: bool
    rounds_activations: bool
    weight_forms: tuple[tuple[str, WeightForm], ...]
    keeps_packed: frozenset[str] = frozenset()
    wrong_odd_sums: bool = False
    constant_recurrent: bool = False
    dynamic_lstm: bool = False
    saturates: bool = False
    codes_throughout: bool = False
    integer_only: bool = False
    activation_bits: tuple[int, ...] = (8,)
    blocks: bool = True

    def cannot(self, recipe: Recipe) -> str | None:
        """Why no file for this engine can hold what a recipe asks for, in words; None where one can."""
        for rule in recipe.rules:
            weights, activations = rule.weights, rule.activations
            if activations is not None and not activations.dynamic:
                bits = find(activations.qtype).bits
                if bits not in self.activation_bits:
                    return f"{self.engine} has no kernels for {bits}-bit activations"
                if recipe.io != "float" and not recipe.io.endswith(f"int{bits}"):
                    return f"inputs and outputs in {recipe.io} do not go with {bits}-bit activations"
            if weights is None or not self.codes_throughout:
                continue
            if weights.range == "half_quadratic":
                return f"{self.engine} has no zero between codes, which range 'half_quadratic' finds"
            if weights.per == "group" and not self.blocks:
                return f"{self.engine} takes weights with a scale per channel or tensor, not in groups"
            if self.weight_form(weights) is None:
                forms = ", ".join(qtype for qtype, _ in self.weight_forms)
                return f"{self.engine} takes weights in {forms}, not in {weights.qtype}"
        if recipe.io != "float" and not (recipe.needs_data and self.codes_throughout):
            return f"inputs and outputs in {recipe.io} need activations in codes: w8a8 or w8a16, for LiteRT"
        return None

    def takes_dynamic(self, op: str) -> bool:
        """Whether int8 kernels multiply activations of that operator, quantized as they come."""
        return self.dynamic_lstm if op == "LSTM" else self.dynamic_int8

    def weight_form(
        self, weights: Scheme, terms: int | None = None, recurrent: bool = False
    ) -> WeightForm | None:
        """The form for weights of that scheme; None where this engine has none worth writing.

        ``terms``: of each sum that a linear layer computes. ``recurrent``: they are those of a recurrent layer.
        """
        form = dict(self.weight_forms).get(_name(weights))
        odd = self.wrong_odd_sums and terms is not None and terms % 2 == 1
        constant = self.constant_recurrent and recurrent
        return "cast_twice_mul" if (odd or constant) and form == "cast_mul" else form

    def stays_packed(self, weights: Scheme) -> bool:
        """Whether linear layers multiply weights of that scheme as they lie in memory."""
        return _name(weights) in self.keeps_packed


def _name(weights: Scheme) -> str:
    return f"{weights.qtype} in groups" if weights.per == "group" else weights.qtype
