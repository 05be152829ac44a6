"""Rounding weights to few bits, and what that costs; files of rounded weights."""
