"""What a privacy curve says about attackers, groups and the search for settings."""
