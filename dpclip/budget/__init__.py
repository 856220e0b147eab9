"""What may be spent, fixed in advance, and what was."""
