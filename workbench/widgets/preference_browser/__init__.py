"""Pairs, rankings and rated rows side by side."""
