"""Hostile input: a corpus with a fate for each entry, properties, and fuzzing by the million."""
