"""Weights files, own and those that other projects publish; reading them runs no code."""
