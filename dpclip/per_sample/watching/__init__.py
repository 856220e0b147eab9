"""Watching a forward and backward pass, layer by layer."""
