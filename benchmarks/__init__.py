"""Measurements against the peers: `python -m benchmarks.<name>` prints progress, then one line of JSON."""
