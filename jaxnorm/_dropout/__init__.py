"""Dropout layers, one file a family."""
