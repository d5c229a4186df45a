"""Experiments, and parts of one's own, that lmech finds by this folder's pyproject.toml."""
