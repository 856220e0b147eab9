"""Finding the noise, the length or the rate that a target allows."""
