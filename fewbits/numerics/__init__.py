"""Tensors only: number formats, rounding, packing. Torch is the array library; knows no model."""
