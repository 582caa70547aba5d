"""Systems that model a preference."""
