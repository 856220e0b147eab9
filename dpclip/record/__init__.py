"""What any loop can save, resume, state and verify."""
