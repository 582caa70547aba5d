"""Curves, samples and diagnoses of trainings, live or finished."""
