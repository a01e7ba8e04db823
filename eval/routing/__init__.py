"""Which experts a file chooses, and how far that agrees with the reference."""
