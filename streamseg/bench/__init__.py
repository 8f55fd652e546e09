"""Benchmarks of streamseg against a baseline, measured in the same run.

Times drift on shared machines. Therefore the rounds of all implementations are interleaved,
and medians and ratios are reported. :mod:`streamseg.bench.runner` runs the parts; each part is a
module of this package.
"""
