"""One seed, a stream for each use: drawing from one never shifts another."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# The order is part of the numbers: append, never reorder.
STREAMS = ("init", "batches", "noise", "probes", "subset")


def stream_seeds(seed: int, overrides: Mapping[str, int | None]) -> dict[str, int]:
    """The seed of each stream: the job's, unless that stream has one of its own."""
    own = {stream: overrides.get(stream) for stream in STREAMS}
    return {stream: seed if value is None else value for stream, value in own.items()}


def key(seeds: Mapping[str, Any], stream: str) -> Any:
    """JAX key of a stream, inside a compiled program (the seed is its input)."""
    import jax  # noqa: PLC0415 planning reads seeds and needs no JAX

    return jax.random.fold_in(jax.random.key(seeds[stream]), STREAMS.index(stream))


def generator(seed: int, stream: str, counter: int) -> np.random.Generator:
    """NumPy generator of a stream on the host; ``counter`` names independent draws (epochs)."""
    return np.random.Generator(
        np.random.Philox(np.random.SeedSequence([seed, STREAMS.index(stream), counter]))
    )
