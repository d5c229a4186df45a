"""Parts as a user may get them wrong: ``_target_``s of tests/test_teaching_errors.py."""

# ruff: noqa: ARG001, ARG005 they have the parameters that such parts have

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from lmech.datasets import Data, Examples
from lmech.observables import Observable

X = np.random.default_rng(0).standard_normal((20, 6))
LABELS = (np.arange(20) % 3).astype(np.int32)
REAL = np.eye(3)[LABELS]


def _data(x=X, y=LABELS, test_x=X, test_y=None, outputs=None):
    return Data(Examples(x, y), Examples(test_x, y if test_y is None else test_y), outputs)


def _with(array, place, value):
    array = np.array(array)
    array[place] = value
    return array


# ------------------------------------------------------------------------------------ datasets


def label_too_large():
    return _data(y=_with(LABELS, 0, 7), outputs=3)


def labels_as_a_column():
    return _data(y=LABELS[:, None])


def labels_as_floats():
    return _data(y=LABELS.astype(float))


def nan_pixel():
    return _data(x=_with(X, (3, 2), np.nan))


def infinite_test_pixel():
    return _data(test_x=_with(X, (4, 1), np.inf))


def nan_target():
    return _data(y=_with(REAL, (1, 0), np.nan), test_y=REAL)


def empty_test():
    return _data(test_x=X[:0], test_y=LABELS[:0])


def class_without_examples():
    return _data(y=np.where(LABELS == 1, 0, LABELS))


def real_targets():
    return _data(y=3 * REAL)


def targets_of_two_widths():
    return _data(y=REAL, test_y=np.eye(4)[LABELS])


def targets_of_two_kinds():
    return _data(y=REAL, test_y=LABELS)


def inputs_of_two_widths():
    return _data(test_x=X[:, :5])


def lists():
    return _data(x=X.tolist())


def texts():
    return _data(x=np.full((20, 6), "a"))


def pair():
    return X, LABELS


def fewer_labels():
    return _data(y=LABELS[:-1])


def no_server():
    raise RuntimeError("the data server is down")


def fine():
    return _data()


# -------------------------------------------------------------------------------------- models


class Net(nn.Module):
    """x → tanh → outputs, with what may be wrong in between."""

    width: int
    outputs: int
    fault: str = ""

    @nn.compact
    def __call__(self, x):
        n = x.shape[0]
        h = jnp.tanh(nn.Dense(self.width)(x.reshape(n, -1)))
        if self.fault == "mixes":
            h = h - h.mean(axis=0, keepdims=True)
        if self.fault == "batch_norm":
            h = nn.BatchNorm(use_running_average=False)(h)
        if self.fault == "dropout":
            h = nn.Dropout(0.5, deterministic=False)(h)
        if self.fault == "batch_size":
            h = h + self.param("shift", nn.initializers.zeros, (n, self.width))
        if self.fault == "three_axes":
            weight = self.param("kernel", nn.initializers.normal(), (self.width, 2, self.outputs))
            return jnp.einsum("nw,wkc->nc", h, weight)
        h = nn.Dense(self.outputs)(h)
        if self.fault == "product":
            h = h @ jnp.ones((99, 2))
        shapes = {"flat": h[:, 0], "summed": h.sum(axis=0), "two": (h, h)}
        return shapes.get(self.fault, h)


class Nothing(nn.Module):
    """It has no parameters."""

    @nn.compact
    def __call__(self, x):
        return jnp.zeros((x.shape[0], 10))


def net(outputs, width=4, fault=""):
    return Net(width, outputs, fault)


def five_outputs(width=4):
    return Net(width, 5)


def unused_width(outputs, width=4):
    return Net(7, outputs)


def breadth(outputs, breadth=4):
    return Net(breadth, outputs)


def no_parameters():
    return Nothing()


def no_licence(outputs):
    raise RuntimeError("no licence for this model")


def none(**_):
    return None


def none_model(outputs):
    return None


# --------------------------------------------------------------- losses, optimizers, schedules


def mean_loss():
    return lambda outputs, y: jnp.mean(outputs**2)


def loss_by_output():
    return lambda outputs, y: outputs**2


def count_loss():
    return lambda outputs, y: jnp.argmax(outputs, axis=-1)


def no_optimizer(learning_rate):
    return None


def concrete_optimizer(learning_rate):
    return optax.sgd(float(learning_rate))


def strange_updates(learning_rate):
    return optax.GradientTransformation(
        lambda params: (), lambda updates, state, params=None: ({"x": jnp.ones(())}, state)
    )


def plain_optimizer(learning_rate):
    return optax.chain(optax.scale(-learning_rate))


def inverse_root():
    """Of the step: infinite at the first."""

    def factors(steps, horizon):
        with np.errstate(divide="ignore"):
            return np.asarray(steps, float) ** -0.5

    return factors


def below_zero():
    return lambda steps, horizon: -np.ones(len(steps))


def one_factor():
    return lambda steps, horizon: np.ones(1)


def of_optax():
    return optax.constant_schedule(1.0)


def no_schedule():
    return None


def no_parametrization():
    return None


def dict_of_scales():
    return lambda model: {"init": 1}


# --------------------------------------------------------------------------------- observables


def _observable(measure):
    return Observable(lambda state: jnp.zeros(2), measure)


def no_dict():
    return _observable(lambda state, memory: (memory, jnp.float32(1)))


def no_memory():
    return _observable(lambda state, memory: {"": jnp.float32(1)})


def growing_memory():
    return _observable(lambda s, memory: (jnp.concatenate([memory, memory]), {"": memory.sum()}))


def nested_values():
    return _observable(lambda state, memory: (memory, {"": {"a": memory.sum()}}))


def matrix():
    return _observable(lambda state, memory: (memory, {"": jnp.zeros((2, 2))}))


def changing_shape():
    return _observable(lambda s, memory: (memory, {"": jnp.nonzero(s.batch.y)[0]}))


def branching():
    def measure(state, memory):
        loss = state.evaluation.loss
        return memory, {"": loss if loss > 0 else -loss}

    return _observable(measure)


def no_observable():
    return None
