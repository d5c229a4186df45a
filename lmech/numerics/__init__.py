"""Numerics: pure functions of arrays. No config, no files, no models."""
