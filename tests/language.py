"""A user's model and dataset of sequences, as small as can be; ``_target_``s of the tests."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lmech.datasets import Data, Examples


class Embedding(nn.Module):
    """Tokens [N, T] → logits [N, T, C]; a position sees itself and the tokens before it."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, x):
        h = nn.Embed(self.outputs, self.width, name="embedding")(x)
        return nn.Dense(self.outputs, name="readout")(jnp.tanh(jnp.cumsum(h, axis=1)))


def embedding(outputs, width=3):
    return Embedding(width, outputs)


def words(train_size=6, context=4, vocabulary=5):
    """Random windows, in which the last word of the vocabulary never occurs."""
    shape = (train_size + 2, context + 1)
    tokens = np.random.default_rng(0).integers(0, vocabulary - 1, shape).astype(np.int32)
    examples = Examples(tokens[:, :-1], tokens[:, 1:])
    train, test = (Examples(*(a[part] for a in examples[:2])) for part in (np.s_[:-2], np.s_[-2:]))
    return Data(train, test, vocabulary)
