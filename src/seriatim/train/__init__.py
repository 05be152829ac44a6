"""Training: from raw files to a model folder; `loop.train` is the verb."""
