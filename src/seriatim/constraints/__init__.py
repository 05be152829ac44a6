"""What a text must match: regexes, choices, JSON schemas and grammars; what is said of bad ones."""
