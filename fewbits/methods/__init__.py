"""What improves numbers: arrays in, arrays out; never walks a model."""
