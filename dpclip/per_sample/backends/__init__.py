"""Gradient backends: one file each."""
