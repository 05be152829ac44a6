"""File formats: headers, checks and maps; no meaning."""
