"""Keras models in: converted in a process of their own, which loads them in safe mode and within limits."""
