"""What rounding does to gradients of logits that are known, and the measurements of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from problems import measured

from experiments import grokking_precision as precision
from experiments.grokking_precision.rounding import rounded_to_zero
from lmech import building, claims, config, member, reproducing
from lmech.collecting import Run

pytestmark = pytest.mark.usefixtures("x64")

ADDITION = (
    *("dataset=modular", "dataset.p=5", "dataset.encoding=one_hot", "model.width=4"),
    *("loss=cross_entropy", "data_fraction=0.6", "observables=[loss]"),
)


def rounded(*loss, gaps, weight=None):
    """Of 15 training pairs whose right logit is above the others by the gaps, in turn."""
    batch = building.build([config.resolve(config.compose([*ADDITION, *loss]))])
    inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), batch.inputs)
    state = member.initial_state(batch.program, inputs, jax.device_put(batch.data))
    train = state.data.train
    if weight is not None:
        weight = jnp.resize(jnp.asarray(weight, jnp.int32), train.y.shape)
        state = state._replace(data=state.data._replace(train=train._replace(weight=weight)))
    gap = jnp.resize(jnp.asarray(gaps, jnp.float32), train.y.shape)
    logits = gap[:, None] * jax.nn.one_hot(train.y, 5, dtype=jnp.float32)
    problem = state.problem._replace(apply=lambda _params, _x: logits)
    return measured(rounded_to_zero(), state._replace(problem=problem))


def test_a_softmax_in_float32_rounds_where_the_gap_is_large():
    """4 e^-gap is 8e-9 at 20, below half the spacing of float32 at 1, and 7e-3 at 5."""
    values = rounded(gaps=[20, 20, 20, 20, 5])
    assert (values[""], values["loss"]) == pytest.approx((0.8, 0.8))
    wrong = 4 * np.exp(-5) / (1 + 4 * np.exp(-5))  # beside it e^-20 is nothing
    assert values["gradient"] == pytest.approx(wrong / 5, rel=1e-5)


@pytest.mark.parametrize("loss", ["loss.precision=float64", "loss.probabilities=stablemax"])
def test_in_float64_or_with_stablemax_the_same_logits_keep_their_gradients(loss):
    values = rounded(loss, gaps=[20, 5])
    assert values[""] == values["loss"] == 0


def test_pairs_that_do_not_count_are_not_counted():
    assert rounded(gaps=[20, 20, 5], weight=[1, 1, 0])[""] == 1


def run(loss=1e-3, test=0.1, rounded=0.0, seed=0, **config):
    """A column each, a value a step; the training set is known from step 1 on."""
    loss, test, rounded = np.broadcast_arrays(*map(np.atleast_1d, (loss, test, rounded)))
    metrics = pd.DataFrame(
        {
            "step": np.arange(len(loss)),
            "train_loss": loss,
            "train_accuracy": np.minimum(np.arange(len(loss)), 1.0),
            "test_accuracy": test,
            "rounded": rounded,
        }
    )
    own = {"probabilities": "softmax", "precision": None, **config}
    target = own.pop("optimizer", "optax.adamw")
    whole = {"loss": own, "optimizer": {"_target_": target}, "seed": seed}
    return Run(f"{config} {seed}", {}, whole, {"status": "done"}, metrics)


def measure(*runs):
    return precision.measure(runs).to_dict("records")


def test_the_arms_are_told_apart():
    orthogonal = run(optimizer="lmech.optimizers.orthogonal_adamw")
    rows = measure(run(), run(precision="float64"), run(probabilities="stablemax"), orthogonal)
    assert [row["arm"] for row in rows] == list(precision.NAMES)


def test_first_steps_and_highest_values():
    (row,) = measure(run(test=[0.1, 0.2, 0.96, 0.5], rounded=[0, 0.1, 0.5, 0.4]))
    assert (row["test"], row["rounded"]) == (0.96, 0.5)
    assert (row["memorised_at"], row["generalised_at"], row["rounded_at"]) == (1, 2, 2)
    (never,) = measure(run(test=[0.1, 0.2], rounded=[0, 0.1]))
    assert never["generalised_at"] == never["rounded_at"] == np.inf


def test_the_rise_is_over_what_was_before_and_counts_from_float32s_rounding():
    (row,) = measure(run(loss=[1e-9, 1e-2, 1e-4, 1e-1, 1e-3]))
    assert row["rise"] == pytest.approx(3)
    (from_zero,) = measure(run(loss=[1.0, 0.0, 2.0**-24 * 100]))
    assert from_zero["rise"] == pytest.approx(2)
    (falling,) = measure(run(loss=[9.0, 1.0, 0.1]))
    assert falling["rise"] == 0


def test_every_claim_selects_an_arm_and_one_of_its_quantities():
    experiment = reproducing.load("grokking_precision", "default", [])
    measured = set(measure(run())[0])
    assert experiment.claims
    for claim in experiment.claims:
        assert isinstance(claim, claims.Claim)
        assert claim.where["arm"] in precision.NAMES
        assert claim.quantity in measured


def test_each_arm_is_a_program_and_its_seeds_are_not_the_pilots(monkeypatch):
    monkeypatch.setattr(reproducing.planning, "_data_checksum", lambda _: "any")
    experiment = reproducing.load("grokking_precision", "default", [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    assert len(reproducing.planning.group(jobs)) == 4
    assert {precision._arm(job.config) for job in jobs} == set(precision.NAMES)
    assert not {job.config["seed"] for job in jobs} & {100, 101}
