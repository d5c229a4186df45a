"""Models: factories of flax modules. A factory takes ``outputs`` (from the data) and its keys.

A module maps inputs [N, …] to outputs [N, C]; tokens [N, T] to [N, T, C]. ``outputs`` is C, and of
text the number of different tokens.
"""
