"""Inspectors: views of plain results, one file each, that show themselves in a notebook and in a rendered page."""
