"""Size, latency and quality of a written artifact."""
