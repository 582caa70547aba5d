"""Worlds: small formal tasks whose truth is planted, so that every measurement has a right answer."""
