"""Feedback: asking models in words, reading what they say, and turning comparisons into matches."""
