"""Numbers in, numbers out: no files, no configuration, no model."""
