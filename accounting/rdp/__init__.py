"""Rényi differential privacy: curves over orders, and their conversion."""
