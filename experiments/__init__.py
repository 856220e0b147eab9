"""One folder a claim; see README.md."""
