"""Worlds: small formal tasks whose truth is planted, so that every measurement has a right answer.

What may live here: one file a world, each under 150 lines, built from `language`. What may not: methods, claims.
"""
