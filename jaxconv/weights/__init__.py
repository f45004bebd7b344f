"""Weights in from other frameworks, programs out."""
