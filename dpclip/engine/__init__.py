"""Private training: one logical step, the loop around it, and what it may promise."""
