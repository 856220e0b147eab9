"""An append-only, hash-chained file of what was charged, and the merging of several."""
