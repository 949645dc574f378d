"""Measurements against the peers: `python -m benchmarks.<name>` prints progress, then a JSON object as its last line."""
