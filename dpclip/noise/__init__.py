"""The privacy boundary: randomness, exact Gaussian noise, and the one release of a step."""
