"""Reproducible measurements: the textbook way and streamseg side by side, in one run.

Times drift on shared machines, so what is compared is interleaved, and medians and ratios are
reported. ``run.py`` runs the parts; each part is a file here.
"""
