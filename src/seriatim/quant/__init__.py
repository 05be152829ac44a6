"""Quantisation: which integers stand for a weight, and what that costs. Needs numpy alone."""
