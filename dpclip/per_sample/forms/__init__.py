"""The forms that per-sample gradients are kept in."""
