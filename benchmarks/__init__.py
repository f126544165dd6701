"""Measurements of what the library promises; `python -m benchmarks --help`."""
