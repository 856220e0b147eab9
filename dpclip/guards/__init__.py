"""What keeps a loop of the user's own from doing what no noise covers."""
