"""Measurement: scores of many files, facts of models and machines."""
