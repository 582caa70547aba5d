"""Feedback: asking models in words, reading what they say, and turning comparisons into matches.

What may live here: oracles, judges, simulated and local chat models, questions and their answers. What may not: rating
systems (`ranking`), training, methods.
"""
