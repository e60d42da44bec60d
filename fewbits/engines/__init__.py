"""Compile and run an artifact; each engine owns its capability table."""
