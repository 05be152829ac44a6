"""Search and selection: several continuations, and which of them is the answer."""
