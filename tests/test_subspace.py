"""Training in a random affine subspace of weight space."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from jax.flatten_util import ravel_pytree
from problems import column, job, state, train

from lmech import building, member, planning, seeds
from lmech.cli import main
from lmech.disk import read_json
from lmech.numerics import subspace
from lmech.problem import loss_and_gradient
from lmech.values import ConfigError

pytestmark = pytest.mark.usefixtures("x64")


def matrix(d, signs):
    """P [D, d]."""
    return np.asarray(jax.jacobian(subspace.embedded)(jnp.zeros(d), jnp.asarray(signs)))


def drawn(size, seed=0):
    return subspace.signs(jax.random.key(seed), size, jnp.float64)


@pytest.mark.slow
@pytest.mark.parametrize(("d", "size"), [(1, 1), (1, 7), (5, 50), (64, 64)])
def test_directions_are_orthonormal(d, size):
    P = matrix(d, drawn(size))
    np.testing.assert_allclose(P.T @ P, np.eye(d), atol=1e-13)


def test_no_direction_is_preferred_beyond_the_shares_of_the_tensors_entries():
    """Over the signs E[PPᵀ] is diagonal, ℓ_i = Σ_j P_ij²: of mean d/D, and near it."""
    d, size, draws = 40, 320, 2000
    signs = np.stack([drawn(size, seed) for seed in range(draws)])
    waves = matrix(d, np.ones(size))
    shares = np.square(waves).sum(1)
    np.testing.assert_allclose(shares.mean(), d / size, rtol=1e-12)
    assert shares.std() < d / size / np.sqrt(d)
    v = np.stack([waves[:, 2], np.ones(size), np.random.default_rng(0).normal(size=size)])
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    found = np.square((v[:, None] * signs) @ waves).sum(-1)
    expected = np.square(v) @ shares
    np.testing.assert_allclose(expected, d / size, rtol=0.1)
    error = found.std(1) / np.sqrt(draws)
    assert (np.abs(found.mean(1) - expected) < 5 * error).all()


def test_more_directions_than_weights_are_an_error():
    with pytest.raises(ValueError, match="9 directions, and there are 8 weights"):
        subspace.embedded(jnp.zeros(9), jnp.ones(8))


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", [["optimizer=gd"], ["optimizer=adamw"], ["optimizer=momentum"]], ids=str
)
def test_it_is_the_optimizer_on_the_coordinates(optimizer):
    """z ← z + the optimizer's update of Pᵀ∇L(w_o + Pz)."""
    words = [*optimizer, "precision=float64", "optimizer.learning_rate=0.05", "steps=6"]
    plain = building.build([job(*words)])
    inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), plain.inputs)
    start, unravel = ravel_pytree(member.start(plain.program, inputs, None).params)
    key = jax.random.fold_in(seeds.key(inputs.seeds, "init"), member.SUBSPACE)
    P = matrix(7, subspace.signs(key, start.size, start.dtype))
    made = plain.program.optimizer.transformation(inputs.hyperparameters)
    z, losses = jnp.zeros(7), []
    kept = made.init(z)
    for _ in range(6):
        evaluation, gradient = loss_and_gradient(
            plain.program.problem, unravel(start + P @ z), plain.data.train, None
        )
        losses.append(float(evaluation.loss))
        update, kept = made.update(P.T @ ravel_pytree(gradient)[0], kept, z)
        z = z + update
    recorder, end = train([job(*words, "subspace=7")])
    recorded = column(recorder, 0, "train_loss")
    np.testing.assert_allclose([recorded[t] for t in range(6)], losses, rtol=1e-10)
    np.testing.assert_allclose(end.params["subspace"]["coordinates"][0], z, rtol=1e-8)


def test_as_many_directions_as_weights_are_all_of_weight_space():
    """PPᵀ = I: gradient descent goes the same way."""
    words = ["model.width=3", "precision=float64", "steps=10", "optimizer.learning_rate=0.2"]
    size = ravel_pytree(state(*words).params)[0].size
    one, other = (train([job(*words, f"subspace={d}")])[0] for d in (size, "null"))
    a, b = (column(recorder, 0, "train_loss") for recorder in (one, other))
    assert a.keys() == b.keys()
    np.testing.assert_allclose([*a.values()], [*b.values()], rtol=1e-9)


@pytest.mark.slow
def test_curvature_is_that_of_the_coordinates():
    """λ₁ is that of PᵀHP, here of the dense Hessian in the coordinates."""
    words = ["model.width=4", "precision=float64", "subspace=9", "steps=1"]
    at = state(*words)

    def loss(z):
        params = {"subspace": {"coordinates": z}}
        return loss_and_gradient(at.problem, params, at.data.train, None)[0].loss

    dense = np.linalg.eigvalsh(jax.hessian(loss)(jnp.zeros(9)))[-1]
    recorder, _ = train(
        [job(*words, "observables=[sharpness]", "observables.sharpness.tolerance=1e-10")]
    )
    np.testing.assert_allclose(column(recorder, 0, "sharpness")[0], dense, rtol=1e-8)


def test_members_of_one_program_have_subspaces_of_their_own():
    configs = [job("subspace=5", "steps=5", f"seed={seed}") for seed in (0, 1, 0)]
    _, end = train(configs)
    z = end.params["subspace"]["coordinates"]
    assert (z[0] == z[2]).all()
    assert not np.allclose(z[0], z[1])


def test_it_is_part_of_what_the_job_is_only_where_it_is_set():
    plain = job()
    assert planning.job_id(plain) == planning.job_id(
        {k: plain[k] for k in plain if k != "subspace"}
    )
    ids = {planning.job_id(job(f"subspace={d}")) for d in ("null", 5, 6)}
    keys = {planning.program_key(job(f"subspace={d}")) for d in ("null", 5, 6)}
    assert len(ids) == len(keys) == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["subspace=100000"], "subspace=100000, and the model has"),
        (["subspace=5", "parametrization=mup", "model.width=16"], "learning rate differ here"),
        (["subspace=5", "model=two_layer"], "learning rate differ here"),
        (["subspace=0"], "subspace"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(words, told):
    with pytest.raises(ConfigError, match=told):
        building.build([job(*words)])


def test_coordinates_are_kept_measured_later_and_start_at_anothers_weights(elsewhere, capsys):
    words = ["dataset.train_size=60", "model.width=4", "observables=[loss]"]
    assert main([*words, "steps=4"]) == 0
    (other,) = elsewhere.glob("outputs/run/*/*/result.json")
    began = [*words, "steps=3", "subspace=6", f"init_from={other.parent.name}@last", "name=sub"]
    assert main(began) == 0
    (own,) = elsewhere.glob("outputs/sub/*/*/result.json")
    with np.load(own.parent / "weights" / "3.npz") as kept:
        assert [kept[name].shape for name in kept] == [(6,)]
    last = read_json(other)["final"]["train_loss"]
    table = pd.read_parquet(own.parent / "metrics.parquet")
    np.testing.assert_allclose(table["train_loss"][0], last, rtol=1e-6)
    capsys.readouterr()
    assert main(["measure", "outputs/sub", "observables=[accuracy]"]) == 0
    assert "1 measured" in capsys.readouterr().out
    assert 0 <= read_json(own)["final"]["train_accuracy"] <= 1
