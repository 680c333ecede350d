"""Benchmarks: draw their prompts with several methods and seeds, score the pictures, report.

`benchmark.py` has the protocol that is all this package knows of a benchmark, `run.py` the driver.
Loads without PyTorch.
"""
