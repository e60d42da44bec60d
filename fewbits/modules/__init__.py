"""PyTorch modules whose layers hold codes: a module in, a module out, and a look inside."""
