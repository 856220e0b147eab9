"""Budgets that are kept while noise is chosen step by step, and what has been spent of them."""
