"""What compares systems with each other."""
