"""What a model is: a `Spec` of frozen records, a table of tensor names, and one forward pass."""
