"""Recorded composition: files and folders in, results and annotated video out."""
