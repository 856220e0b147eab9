"""Private training in a loop of your own: begin it, and go on with it."""
