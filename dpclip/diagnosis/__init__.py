"""Examining a model before it meets data."""
