"""Where positions are kept: one back end a file."""
