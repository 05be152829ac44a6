"""The HTTP server: protocols that people's clients speak, translated to requests of an engine."""
