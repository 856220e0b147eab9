"""The run behind `dpclip train`."""
