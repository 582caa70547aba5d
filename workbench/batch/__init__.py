"""Batch: behind `workbench reproduce`: where children run, what one child does, runs done again and compared."""
