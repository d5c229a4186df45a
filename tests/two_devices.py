"""What ``test_sharing`` checks in a process of its own: devices are asked for before JAX looks."""

import sys

import jax
import numpy as np
import pytest
from problems import column, job, train

from lmech import building, compiling, programs
from lmech.numerics.precision import numerics
from lmech.values import ConfigError

RUN = ("precision=float64", "execution.mode=map", "optimizer.learning_rate=0.2")
SEEN = ("observables=[loss,accuracy,sharpness]", "observables.sharpness.every=5")
SHARED = ("execution.devices=2", "execution.share=examples")


def same(*words):
    """Shares of the examples add up to the run on one device."""
    alone, one = train([job(*RUN, *SEEN, *words)])
    together, two = train([job(*RUN, *SEEN, *words, *SHARED)])
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    for name in ("train_loss", "sharpness"):
        ours, theirs = (column(recorder, 0, name) for recorder in (together, alone))
        assert list(ours) == list(theirs)
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-8)


def compiled(*words):
    setup = building.build([job(*RUN, *words)])
    arguments = setup.argument_shapes()[programs.TRAINING_PROGRAM]
    return programs.compiled(setup.program).chunk.lower(*arguments).compile()


def half(*words):
    """Each device does half of the work, and they add up what they have."""
    large = ("dataset.train_size=600", "model.width=64", *words)
    alone, shared = compiled(*large), compiled(*large, *SHARED)
    assert "all-reduce" in shared.as_text()
    assert "all-reduce" not in alone.as_text()
    ratio = shared.cost_analysis()["flops"] / alone.cost_analysis()["flops"]
    assert 0.45 < ratio < 0.6, ratio


def refused(told, *words):
    """What cannot be shared is one line."""
    with pytest.raises(ConfigError, match=told):
        building.build([job(*RUN, *SHARED, *words)])


def main():
    compiling.host_devices(2)
    with numerics():
        for batch in ("null", "20"):
            same(f"batch_size={batch}")
            half(f"batch_size={batch}")
        refused("61 examples a step are no multiple of 2 devices", "dataset.train_size=61")
        refused("15 examples a step", "batch_size=15")
        refused("set microbatch=null", "microbatch=10")
        assert building.build([job("execution.devices=2")]).program.spread == 1


if __name__ == "__main__":
    sys.exit(main())
