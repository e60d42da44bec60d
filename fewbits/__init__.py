"""fewbits takes a trained model and hands back the same model in fewer bits, with proof."""

__version__ = "0.1.0"
