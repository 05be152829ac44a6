"""Numbers: the op table, its torch reference, the recorder, and the bridge to the C++ runtime."""
