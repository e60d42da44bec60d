"""Hugging Face directories: weights on disk in, weights in fewer bits on disk out, slice by slice."""

FORMAT = "huggingface"
"""What a report calls the format of a directory."""
