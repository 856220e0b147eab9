"""Privacy accounting for differentially private training, without torch."""
