"""Real servers run from published packages, for machines without a container engine."""
