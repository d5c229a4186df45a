"""Each optimizer's threshold and preconditioner against its own iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import job

from lmech import building, optimizers

pytestmark = pytest.mark.usefixtures("x64")

PRESETS = (
    "gd",
    "momentum",
    "nesterov",
    "ema_momentum",
    "general_momentum",
    "l2_momentum",
    "adam",
    "adamw",
    "rmsprop",
    "adagrad",
    "scalar_rmsprop",
)
DECAYING = ("adamw", "l2_momentum")
RATE = 0.37


def built(preset, *overrides):
    batch = building.build([job(f"optimizer={preset}", "precision=float64", *overrides)])
    arguments = {k: jnp.asarray(v[0]) for k, v in batch.inputs.hyperparameters.items()}
    return batch.program.optimizer, {**arguments, "learning_rate": jnp.asarray(RATE)}


def frozen(preset, arguments):
    """The preset's iteration with its preconditioner held at 1."""
    b1 = arguments.get("b1", 0.0)
    decay = optax.add_decayed_weights(arguments.get("weight_decay", 0.0))
    table = {
        "adam": optax.ema(b1, debias=False),
        "adamw": optax.chain(optax.ema(b1, debias=False), decay),
        "rmsprop": optax.identity(),
        "adagrad": optax.identity(),
        "scalar_rmsprop": optax.identity(),
    }
    return optax.chain(table[preset], optax.scale_by_learning_rate(RATE))


def grows(transformation, curvature, steps=60_000):
    """Whether gradient steps on ½hw² diverge from w = 1."""

    def step(_, loop):
        w, state = loop
        update, state = transformation.update(curvature * w, state, w)
        return jnp.clip(w + update, -1e30, 1e30), state

    w = jnp.asarray(1.0)
    half, state = jax.lax.fori_loop(0, steps // 2, step, (w, transformation.init(w)))
    # The largest of the last few: the iterate itself may pass zero.
    late = jax.lax.fori_loop(0, steps // 2, step, (half, state))[0]
    return jnp.abs(late) > 1.0


@pytest.mark.parametrize(
    ("preset", "own"),
    [
        *((preset, {}) for preset in PRESETS if preset not in DECAYING),
        *((preset, {"weight_decay": decay}) for preset in DECAYING for decay in (0.0, 0.3)),
        ("general_momentum", {"nesterov": 1.0}),
        ("general_momentum", {"dampening": 0.9}),
        ("general_momentum", {"nesterov": 0.3, "dampening": 0.6}),
    ],
)
def test_the_threshold_is_where_the_iteration_on_a_quadratic_diverges(preset, own):
    optimizer, arguments = built(preset, *(f"optimizer.{key}={v}" for key, v in own.items()))
    adaptive = preset in ("adam", "adamw", "rmsprop", "adagrad", "scalar_rmsprop")
    transformation = frozen(preset, arguments) if adaptive else optimizer.transformation(arguments)
    state = optimizer.transformation(arguments).init(jnp.asarray(1.0))
    stated = float(optimizer.stability(arguments, state, jnp.asarray(1.0)).threshold)
    diverges = jax.jit(lambda curvature: grows(transformation, curvature))
    low, high = 0.0, 10 * stated
    while high - low > 1e-4 * stated:
        middle = (low + high) / 2
        low, high = (low, middle) if diverges(middle) else (middle, high)
    np.testing.assert_allclose(stated, (low + high) / 2, rtol=1e-3)


FIRST_MOMENT = {
    "adam": lambda state, _: optimizers._find(state, optax.ScaleByAdamState).mu,
    "adamw": lambda state, _: optimizers._find(state, optax.ScaleByAdamState).mu,
    "rmsprop": lambda _, g: g,
    "adagrad": lambda _, g: g,
    "scalar_rmsprop": lambda _, g: g,
    "gd": lambda _, g: g,
    "momentum": lambda state, _: optimizers._find(state, optax.TraceState).trace,
    "ema_momentum": lambda state, _: optimizers._find(state, optax.EmaState).ema,
    "general_momentum": lambda state, _: optimizers._find(state, optax.TraceState).trace,
    "l2_momentum": lambda state, _: optimizers._find(state, optax.TraceState).trace,
}


@pytest.mark.parametrize("preset", FIRST_MOMENT)
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_minus_rate_over_preconditioner_times_moment_is_the_update(preset, steps):
    extra = ["optimizer.weight_decay=0.0"] if preset in DECAYING else []
    optimizer, arguments = built(preset, *extra)
    transformation = optimizer.transformation(arguments)
    rng = np.random.default_rng(0)
    w = {"a": jnp.asarray(rng.normal(size=5)), "b": jnp.asarray(rng.normal(size=(2, 3)))}
    state = transformation.init(w)
    for _ in range(steps):
        g = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), w)
        update, state = transformation.update(g, state, w)
    preconditioner = optimizer.stability(arguments, state, w).preconditioner
    moment = FIRST_MOMENT[preset](state, g)
    for u, p, m in zip(*map(jax.tree.leaves, (update, preconditioner, moment)), strict=True):
        np.testing.assert_allclose(-RATE / p * m, u, rtol=1e-6)


@pytest.mark.parametrize("flag", ["centered=true", "eps_in_sqrt=false", "bias_correction=true"])
def test_an_undescribed_variant_states_no_threshold(flag):
    assert built("rmsprop", f"optimizer.{flag}")[0].stability is None
    assert built("rmsprop")[0].stability is not None
    assert built("muon")[0].stability is None


def test_a_factory_of_ones_own_declares_its_rule():
    def halved(learning_rate):
        return optax.sgd(learning_rate / 2)

    halved.stability = lambda arguments, _, params: optimizers.Stability(
        jax.tree.map(jnp.ones_like, params), 4 / arguments["learning_rate"]
    )
    optimizer = optimizers.optimizer(halved)
    rate = {"learning_rate": jnp.asarray(0.1)}
    assert optimizer.stability(rate, None, jnp.ones(2)).threshold == pytest.approx(40)
