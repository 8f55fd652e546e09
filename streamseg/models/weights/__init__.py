"""Weights files of this and other projects; reading them executes no code."""
