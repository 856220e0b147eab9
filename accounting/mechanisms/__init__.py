"""The arithmetic of each mechanism: Rényi divergences and privacy-loss distributions."""
