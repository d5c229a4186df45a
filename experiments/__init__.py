"""Experiments: one phenomenon a folder. Imported as ``lmech.experiments.NAME``."""
