"""What the command line trains: language modelling and classification, and their records."""
