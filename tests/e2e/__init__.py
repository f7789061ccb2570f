"""The programs as users run them, against a real broker."""
