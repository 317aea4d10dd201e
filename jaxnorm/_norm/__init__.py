"""Normalization layers, one file a family."""
