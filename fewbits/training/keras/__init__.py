"""Quantization-aware training for Keras 3: wrap a model, compile and fit it as any other, and compress it.

>>> from fewbits.training.keras import prepare
>>> model = prepare(trained, samples)               # doctest: +SKIP
>>> model.compile("adam", loss, metrics=["accuracy"])  # doctest: +SKIP
>>> model.fit(x, y, epochs=2)                       # doctest: +SKIP
>>> fb.compress(model, samples, out="o")            # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewbits.training.keras.unwrap import Finished

__all__ = ["finished", "is_prepared", "prepare"]


def prepare(model: Any, data: Any, weight_bits: int = 8) -> Any:
    """See :func:`fewbits.training.keras.wrap.prepare`."""
    from fewbits.training.keras import wrap

    return wrap.prepare(model, data, weight_bits)


def is_prepared(model: Any) -> bool:
    """Whether :func:`prepare` made the Keras model."""
    layers = getattr(model, "layers", ())
    return any(type(layer).__module__ == "fewbits.training.keras.layers" for layer in layers)


def finished(model: Any) -> Finished:
    """See :func:`fewbits.training.keras.unwrap.finished`."""
    from fewbits.training.keras import unwrap

    return unwrap.finished(model)
