"""Measurements against the peers, each `python -m benchmarks.<name>`: progress, then one JSON object as the last line."""
