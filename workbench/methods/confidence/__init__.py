"""Methods that ask whether a model knows what it knows, one file each. No method imports another."""
