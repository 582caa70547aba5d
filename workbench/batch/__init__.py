"""Batch: what `workbench reproduce` stands on: where children run, what one child does, runs done again and
compared."""
