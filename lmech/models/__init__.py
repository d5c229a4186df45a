"""Models: factories of flax modules. A factory takes ``outputs`` (from the data) and its keys."""
