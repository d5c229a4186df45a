"""A frozen layer of random features and its readout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import job, state, train

from lmech.models.random_features import draw, random_features


@pytest.mark.parametrize(("spread", "scale"), [(None, 5**-0.5), (2.0, 2.0)])
def test_outputs_are_the_formula_and_start_at_0(spread, scale):
    model = random_features(outputs=2, width=8, activation="tanh", spread=spread)
    x = jax.random.normal(jax.random.key(1), (3, 5))
    params = model.init(jax.random.key(0), x)["params"]
    assert (model.apply({"params": params}, x) == 0).all()
    theta = jax.random.normal(jax.random.key(2), (8, 2))
    found = model.apply({"params": {**params, "readout": theta}}, x)
    expected = np.tanh(scale * x @ params["features"]) @ theta / 8**0.5
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_a_wider_draw_begins_with_a_narrower_ones_features():
    """Entries are independent N(0, 1): variance and mean within 5 standard errors."""
    narrow, wide = (draw(jax.random.key(3), (40, d), jnp.float64) for d in (10, 300))
    np.testing.assert_array_equal(wide[:, :10], narrow)
    taller = draw(jax.random.key(3), (60, 10), jnp.float64)
    np.testing.assert_array_equal(taller[:40], narrow)
    assert abs(wide.mean()) < 5 / wide.size**0.5
    assert abs(wide.var() - 1) < 5 * (2 / wide.size) ** 0.5
    off = np.corrcoef(np.asarray(wide).T) - np.eye(300)
    assert np.abs(off).max() < 6 / 40**0.5


def test_only_the_readout_trains():
    words = ["model=random_features", "optimizer.learning_rate=0.1", "dataset.train_size=30"]
    at = state(*words)
    _, end = train([job(*words)])
    np.testing.assert_array_equal(end.params["features"][0], at.params["features"])
    assert np.abs(end.params["readout"]).max() > 0
