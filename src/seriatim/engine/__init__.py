"""Requests in, ids out: schedule, run, sample, finish. Knows ids, never text, notes or pixels."""
