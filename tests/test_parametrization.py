"""Parametrizations: exponents in closed form, roles from shapes, the same training in any form."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from problems import job, measured, state, train

from lmech import building, config, modelling, paths, planning, roles, tables
from lmech.cli import main
from lmech.models.declared import Declared
from lmech.numerics import kernels, trees
from lmech.observables.curvature import effective_sharpness
from lmech.observables.kernel import ntk
from lmech.tables import exponents

OTHERS = [name for name in config.groups()["parametrization"] if name != "sp"]
FORMS = {
    "table 3": (0.0, 0.0, 0.0),
    "table 8": (0.0, 0.0, 1.0),
    "table 9": (-0.5, 0.0, 0.5),
    "mean field": (0.0, 0.5, 1.0),
}
NONE = tables.Shift(input=0.0, hidden=0.0, output=0.0)


def preset(name):
    file = paths.conf() / "parametrization" / f"{name}.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def shifted(form):
    values = zip(("input", "hidden", "output"), FORMS[form], strict=True)
    return [f"parametrization.shift.{role}={theta}" for role, theta in values]


def scales(*overrides):
    """Each tensor's factors, by path and by name."""
    resolved = job(*overrides)
    found = modelling.scales_of([resolved], building.load_data(resolved))[0]
    names = ("init", "multiplier", "learning_rate", "decay", "epsilon")
    by_name = {name: trees.named_leaves(getattr(found, name)) for name in names}
    return {path: {n: by_name[n][path] for n in names} for path in by_name["init"]}


def tensors(*overrides, base_width=8, base_depth=None):
    resolved = job(*overrides)
    model = modelling.model_of(resolved, building.load_data(resolved))
    return {t.path: t for t in roles.tensors(model, base_width, base_depth)}


# ------------------------------------------------------------------------------ the table


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "optimizer", ["adamw", *(pytest.param(o, marks=pytest.mark.slow) for o in ("momentum", "muon"))]
)
def test_at_the_base_width_every_table_is_sp_bit_for_bit(optimizer):
    ours = [f"parametrization={name}" for name in OTHERS]
    base = ["parametrization.base_width=8", "parametrization.base_depth=2"]
    configs = [
        job(f"optimizer={optimizer}"),
        *(job(f"optimizer={optimizer}", p, *base) for p in ours),
    ]
    assert len({planning.program_key(c) for c in configs}) == 1
    recorder, end = train(configs, mode="map")
    for place in range(1, len(configs)):
        jax.tree.map(
            np.testing.assert_array_equal, *(trees.take(end.params, i) for i in (0, place))
        )
        assert recorder.table(place).equals(recorder.table(0))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("width", "optimizer"),
    [
        (32, ["optimizer=momentum", "optimizer.learning_rate=0.05"]),
        (128, ["optimizer=momentum", "optimizer.learning_rate=0.05"]),
        (32, ["optimizer=adamw", "optimizer.weight_decay=0.1", "batch_size=20"]),
        (32, ["optimizer=muon", "optimizer.weight_decay=0.1"]),
    ],
    ids=str,
)
def test_the_forms_of_mup_are_one_training_bit_for_bit_at_width_ratios_of_powers_of_4(
    width, optimizer
):
    """Where the decay does not depend on the form, and Adam's ε goes with the gradient."""
    own = ["parametrization=mup", "parametrization.base_width=8", "parametrization.epsilon=scaled"]
    configs = [job(f"model.width={width}", *own, *optimizer, *shifted(form)) for form in FORMS]
    recorder, end = train(configs, mode="map")
    data = building.load_data(configs[0])
    multipliers = [s.multiplier for s in modelling.scales_of(configs, data)]

    def effective(place):
        params = jax.tree.map(lambda leaf: leaf[place], end.params)
        return jax.tree.map(lambda m, w: np.float32(m) * w, multipliers[place], params)

    for place in range(1, len(FORMS)):
        jax.tree.map(np.testing.assert_array_equal, effective(0), effective(place))
        assert recorder.table(place).equals(recorder.table(0))
    assert multipliers[0] != multipliers[1]


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["sp", "mup", "ntk"])
def test_the_decay_goes_by_role(name):
    decays = "{input: 3.0, hidden: 0.5, output: 2.0, vector: 0.0}"
    base = [] if name == "sp" else ["parametrization.base_width=8"]
    own = [f"parametrization={name}", *base, f"parametrization.decays={decays}", "steps=1"]
    words = ["precision=float64", "optimizer=l2_momentum", *own]
    start = state(*words).params
    decayed, plain = (
        train([job(*words, f"optimizer.weight_decay={decay}")])[1].params for decay in (0.5, 0.0)
    )
    by_tensor = {"hidden_1/kernel": 3, "hidden_2/kernel": 0.5, "readout/kernel": 2}
    by_tensor["readout/bias"] = 1  # which does not grow with the width
    for path, w in trees.named_leaves(start).items():
        change = (trees.named_leaves(decayed)[path] - trees.named_leaves(plain)[path])[0]
        expected = -0.1 * 0.5 * by_tensor.get(path, 0) * w
        np.testing.assert_allclose(change, expected, rtol=1e-9, atol=1e-14, err_msg=path)


def test_mean_field_is_mup_shifted():
    """(a, b, c) → (a + θ, b − θ, c − 2θ) with θ = ½ in hidden layers and 1 at the readout."""
    mup, mean_field = preset("mup")["table"], preset("mean_field")["table"]
    shift = tables.Shift(input=0.0, hidden=0.5, output=1.0)
    for role in mup:
        for family in ("sgd", "adam", "muon"):
            there = exponents(mean_field, role, family, NONE)
            assert exponents(mup, role, family, shift) == there


@pytest.mark.parametrize(
    ("name", "c"),
    [
        ("sp_per_layer", {"sgd": (-0.5, 0.5, 1), "adam": (0, 1, 1)}),
        ("ntk_per_layer", {"sgd": (-0.5, -0.5, 0), "adam": (0, 0.5, 0.5)}),
        ("mup", {"sgd": (-1, 0, 1), "adam": (0, 1, 1)}),
        ("mean_field", {"sgd": (-1, -1, -1), "adam": (0, 0.5, 0)}),
    ],
)
def test_the_largest_stable_rates_are_the_tables_own(name, c):
    """Full alignment: what the table says is what c = α − a − g gives (Everett et al. 2024)."""
    table = preset(name)["table"]
    for family, rates in c.items():
        for role, rate in zip(("input", "hidden", "output"), rates, strict=True):
            assert exponents(table, role, family, NONE, "full").c == rate
            assert exponents(table, role, family, NONE).c == rate


def test_without_alignment_the_readouts_of_ntk_and_mup_have_the_same_rates():
    """They share a = ½ there (μP in the form of table 9)."""
    form = tables.Shift(input=-0.5, hidden=0.0, output=0.5)
    rates = {"sgd": -0.5, "adam": 0.0}
    for family, rate in rates.items():
        ours = exponents(preset("ntk")["table"], "output", family, NONE, "none")
        theirs = exponents(preset("mup")["table"], "output", family, form, "none")
        assert (ours.a, theirs.a) == (0.5, 0.5)
        assert ours.c == theirs.c == rate


def test_alignment_of_an_orthogonalised_update_is_refused():
    with pytest.raises(ValueError, match="muon"):
        exponents(preset("mup")["table"], "hidden", "muon", NONE, "full")


# ------------------------------------------------------------------------------ roles


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("width", [10, 64, 24])
def test_an_axis_that_happens_to_equal_the_width_is_not_one(width):
    """Digits have 64 inputs and 10 classes."""
    found = tensors(f"model.width={width}")
    assert {path: t.role for path, t in found.items()} == {
        "hidden_1/bias": "vector",
        "hidden_1/kernel": "input",
        "hidden_2/bias": "vector",
        "hidden_2/kernel": "hidden",
        "readout/bias": "fixed",
        "readout/kernel": "output",
    }
    ratios = {t.width for t in found.values() if t.role != "fixed"}
    assert ratios == {width / 8}


@pytest.mark.usefixtures("x64")
def test_convolutions_and_norms_have_the_roles_of_their_channels():
    images = ["dataset.flatten=false", "model=cnn", "model.norm_group=20", "model.depth=2"]
    found = tensors(*images)
    shown = {path: t.role for path, t in found.items() if "bias" not in path}
    assert shown == {
        "hidden_1/kernel": "input",
        "hidden_2/kernel": "hidden",
        "norm_1/scale": "vector",
        "norm_2/scale": "vector",
        "readout/kernel": "output",
    }
    assert {found[p].own for p in ("norm_1/scale", "hidden_1/kernel", "hidden_1/bias")} == {0.0}
    assert {found[p].own for p in ("hidden_2/kernel", "hidden_2/bias", "readout/bias")} == {0.5}


def test_shapes_that_cannot_tell_are_an_error_with_the_tensors_path_unless_declared():
    with pytest.raises(ValueError, match=r"parameter out/kernel has 3 axes.*declared.fan_in"):
        roles.role_of("out/kernel", (2, 8, 16), (8, 8, 64), Declared())
    by_heads = Declared(fan_in={"*out/kernel": (0, 1), "*query/kernel": (0,), "*/bias": ()})
    assert roles.role_of("out/kernel", (2, 8, 16), (8, 8, 64), by_heads) == ("hidden", [0])
    assert roles.role_of("query/kernel", (16, 2, 8), (64, 8, 8), by_heads) == ("hidden", [0])
    assert roles.role_of("query/bias", (2, 8), (8, 8), by_heads) == ("vector", [0])
    assert roles.role_of("v", (16,), (64,), Declared(outputs=("v",))) == ("output", [0])
    assert roles.role_of("s", (), (), Declared(constants=("s",))) == ("constant", [])


def test_an_init_that_goes_as_no_multiple_of_a_half_is_refused():
    assert roles.exponent("w", 0.25, 0.125) == 0.5
    assert roles.exponent("w", 0.0, 0.0) == 0.0
    with pytest.raises(ValueError, match=r"spread of w goes as width\^-0.25"):
        roles.exponent("w", 1.0, 4**-0.25)


class Branches(nn.Module):
    """x ↦ readout(x + V φ(W x)), as often as there are branches; flax's own layers."""

    width: int
    depth: int
    outputs: int

    @property
    def declared(self):
        return Declared(branches=("branch_*",), branch_ends=("branch_*_end/*",))

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(self.width, name="embedding")(x.reshape(len(x), -1))
        for i in range(self.depth):
            inner = nn.relu(nn.Dense(4 * self.width, name=f"branch_{i}_in")(h))
            h = h + nn.Dense(self.width, name=f"branch_{i}_end")(inner)
        return nn.Dense(self.outputs, name="readout")(h)


def branches(outputs: int, width: int, depth: int) -> nn.Module:
    return Branches(width, depth, outputs)


RESIDUAL = ["model._target_=test_parametrization.branches", "model.depth=8", "model.width=32"]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("alpha", "optimizer", "rate"),
    [
        (0.5, "sgd", 1.0),
        (0.5, "adam", 4**-0.5),
        (1.0, "sgd", 4.0),
        (1.0, "adam", 1.0),
        (1.0, "muon", 1.0),
    ],
)
def test_branches_end_in_a_power_of_the_depth_and_their_rates_make_up_for_it(
    alpha, optimizer, rate
):
    """Each of L branches moves the stream by O(1/L): L^-α · rate · (L^-α for SGD) = 1/L."""
    own = ["parametrization=mup", "parametrization.base_width=32", f"optimizer={optimizer}"]
    depth = ["parametrization.base_depth=2", f"parametrization.depth_exponent={alpha}"]
    batches = ["batch_size=20"] if optimizer == "sgd" else []
    found = scales(*RESIDUAL, *own, *depth, *batches)
    for path, factors in found.items():
        ends, inside = "_end/" in path, path.startswith("branch")
        assert factors["multiplier"] == (4**-alpha if ends else 1.0)
        assert factors["learning_rate"] == pytest.approx(rate if inside else 1.0)
        assert factors["init"] == 1.0


# ------------------------------------------------------------------------------ what the trees do


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("model", [["model=mlp"], RESIDUAL[:2]], ids=["ours", "flax"])
@pytest.mark.parametrize("name", ["mup", "ntk", "sp_constant_std"])
def test_initial_spreads_are_the_bases_times_the_tables_power_of_the_width(name, model):
    """Five standard errors; uniform or normal draws of at least 640 entries."""
    table = preset(name)["table"]
    parametrized = [f"parametrization={name}", "parametrization.base_width=32"]
    base, wide = (
        state(*model, f"model.width={width}", *parametrized).params for width in (32, 128)
    )
    found = tensors(*model, "model.width=128", base_width=32)
    narrow, broad = trees.named_leaves(base), trees.named_leaves(wide)
    seen = 0
    for path, tensor in found.items():
        if tensor.role == "fixed" or narrow[path].size < 300 or not np.any(narrow[path]):
            continue
        ratio = np.sqrt(np.mean(np.square(broad[path])) / np.mean(np.square(narrow[path])))
        error = np.sqrt(0.5 / narrow[path].size + 0.5 / broad[path].size)
        assert abs(np.log(ratio / 4 ** -table[tensor.role]["b"])) < 5 * error, path
        seen += 1
    assert seen >= 3


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("output_scale", [1, 4])
@pytest.mark.parametrize("mode", ["coupled", "width_free", "independent"])
def test_what_a_decay_takes_off_each_tensor(mode, output_scale):
    """Coupled: η·C·λ of it a step; width_free: ηλ; independent: λ; C with the outputs' scale."""
    own = ["parametrization=mup", "parametrization.base_width=8", "model.width=32", "steps=1"]
    own += [f"output_scale={output_scale}"]
    adamw = ["optimizer=adamw", "optimizer.learning_rate=0.01", "precision=float64"]
    decays = [f"parametrization.weight_decay={mode}"]
    configs = [job(*own, *adamw, *decays, f"optimizer.weight_decay={decay}") for decay in (0, 0.3)]
    start = state(*own, *adamw).params
    _, end = train(configs)
    factors = scales(*own, *adamw, *decays)
    weights = trees.named_leaves(start)
    for path, after in trees.named_leaves(end.params).items():
        rate = factors[path]["learning_rate"]
        expected = 0.3 * {"coupled": 0.01 * rate, "width_free": 0.01, "independent": 1.0}[mode]
        taken = after[0] - after[1]
        np.testing.assert_allclose(taken, expected * weights[path], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("optimizer", ["gd", "adam"])
def test_kernel_and_effective_sharpness_do_not_depend_on_the_form(optimizer):
    """Θ = J C Jᵀ (of gradient descent) and λ₁(C^½P^-½HP^-½C^½): without C, μP's edge would move."""
    own = ["parametrization=mup", "parametrization.base_width=8", "model.width=32"]
    own += ["parametrization.epsilon=scaled", "precision=float64", f"optimizer={optimizer}"]
    found = []
    for form in FORMS:
        at = state(*own, *shifted(form))
        sharp = measured(effective_sharpness(tolerance=1e-10), at)
        kernel = measured(ntk(examples=10), at)["trace"] if optimizer == "gd" else 0
        found.append((kernel, sharp[""]))
    np.testing.assert_allclose(found, [found[0]] * len(FORMS), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_muons_own_factor_is_not_counted_twice():
    """optax's √max(1, fan_out/fan_in): 1 from 64 inputs to 32 units, √2 to 128, √8 to 512."""
    own = ["optimizer=muon", "parametrization=mup", "parametrization.base_width=32"]
    for width, built_in in ((32, 1.0), (128, 2**0.5), (512, 8**0.5)):
        found = scales(*own, f"model.width={width}")
        n = width / 32
        rate = {path: factors["learning_rate"] for path, factors in found.items()}
        assert rate["hidden_1/kernel"] * built_in == pytest.approx(n**0.5)
        assert rate["hidden_2/kernel"] == 1.0
        assert rate["readout/kernel"] == pytest.approx(n**-0.5)
        assert rate["hidden_2/bias"] == 1.0  # AdamW's


# ------------------------------------------------------------------------------ richness


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("batch", [[], ["batch_size=20"]], ids=["full", "minibatch"])
def test_centred_outputs_start_at_zero(batch):
    """So the first loss is that of the targets alone: ½ for one-hot labels."""
    recorder, _ = train([job("centred=true", "output_scale=3.0", *batch)])
    assert recorder.table(0)["batch_loss"][0].as_py() == pytest.approx(0.5, abs=1e-7)
    assert recorder.table(0)["train_loss"][0].as_py() == pytest.approx(0.5, abs=1e-7)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_at_the_start_the_output_scale_leaves_the_functions_speed_alone_and_later_tames_it():
    """The kernel J C Jᵀ is that of α = 1; how far it moves falls as 1/α (Chizat et al. 2019)."""
    scaled = [1.0, 8.0, 64.0]
    own = ["centred=true", "precision=float64", "model.width=16", "steps=60"]
    traces = [measured(ntk(examples=10), state(*own, f"output_scale={a}"))["trace"] for a in scaled]
    np.testing.assert_allclose(traces, [traces[0]] * 3, rtol=1e-9)
    _, end = train([job(*own, f"output_scale={a}") for a in scaled])
    start = state(*own).params
    moved = [
        np.sqrt(sum(np.sum((leaf[i] - w) ** 2) for leaf, w in
                    zip(jax.tree.leaves(end.params), jax.tree.leaves(start), strict=True)))
        for i in range(3)
    ]  # fmt: skip
    assert moved[1] / moved[2] == pytest.approx(8, rel=0.1)
    assert moved[0] > moved[1]


LINEARIZED = ("linearized=true", "precision=float64", "optimizer.learning_rate=0.5")


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("own", [[], ["centred=true", "output_scale=3.0", "parametrization=ntk"]])
def test_a_linearized_model_is_kernel_gradient_descent_with_the_kernel_at_the_start(own):
    """f ← f − (η/n) Θ₀ (f − y) on all examples, with the training set's y: exactly."""
    at = state(*LINEARIZED, *own)
    (train_x, y, _), (test_x, _, _) = at.data.train, at.data.test
    n, x = len(train_x), jnp.concatenate([train_x, test_x[:7]])
    kernel = kernels.empirical_ntk(at.problem.apply, at.params, x, "full", at.scales.learning_rate)
    f = np.asarray(at.problem.apply(at.params, x))
    moves = np.asarray(kernel)[:, : n * f.shape[1]] * 0.5 / n
    for _ in range(12):
        f = f - (moves @ (f[:n] - np.eye(f.shape[1])[y]).ravel()).reshape(f.shape)
    _, end = train([job(*LINEARIZED, *own)])
    ended = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), end.params)
    np.testing.assert_allclose(at.problem.apply(ended, x), f, rtol=1e-9, atol=1e-11)
    plain = state(*own, "precision=float64")._replace(params=ended)
    assert np.abs(plain.problem.apply(ended, x) - f).max() > 1e-3  # the net itself is not linear


@pytest.mark.usefixtures("x64")
def test_a_model_linear_in_its_weights_is_its_own_expansion():
    own = ["model.depth=0", "precision=float64"]
    ends = [train([job(*own, f"linearized={flag}")])[1].params for flag in ("true", "false")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13), *ends)


@pytest.mark.usefixtures("x64")
def test_a_linearized_model_tells_no_activations():
    assert state().problem.activations(state().params, state().data.train.x)
    with pytest.raises(ValueError, match="does not tell"):
        building.check(
            building.build(
                [job("linearized=true", "observables=[cka]", "observables.cka.examples=9")]
            )
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("key", ["parametrization=mup", "output_scale=2.0"])
def test_an_optimizer_that_does_not_say_how_its_updates_scale_is_a_clear_error(key):
    with pytest.raises(ValueError, match="its factory an attribute `growth`"):
        scales("optimizer._target_=optax.lamb", key)


@pytest.mark.usefixtures("x64")
def test_clipping_shortens_what_is_longer_and_leaves_the_rest_alone():
    """Plain gradient descent's step has norm η · min(‖g‖, clip)."""
    own = ["steps=1", "precision=float64", "optimizer.learning_rate=0.5"]
    start = state(*own).params

    def moved(clip):
        _, end = train([job(*own, f"clip_norm={clip}")])
        last = jax.tree.map(lambda leaf: leaf[0], end.params)
        squares = jax.tree.map(lambda a, b: np.sum((a - b) ** 2), last, start)
        return np.sqrt(sum(jax.tree.leaves(squares)))

    free = moved("null")
    assert moved(1e-3) == pytest.approx(0.5e-3)
    assert moved(1e3) == free


@pytest.mark.usefixtures("x64")
def test_a_constant_is_not_decayed_either():
    """A frozen readout under AdamW, in any parametrization."""
    own = ["model=two_layer", "optimizer=adamw", "optimizer.weight_decay=0.5"]
    for parametrization in ("sp", "mup"):
        overrides = [*own, f"parametrization={parametrization}", "model.width=8"]
        start = state(*overrides).params
        _, end = train([job(*overrides)])
        kept = (end.params["readout"]["kernel"][0], start["readout"]["kernel"])
        np.testing.assert_allclose(*kept, rtol=1e-6)  # a decay takes a thousandth a step
        moved = np.abs(end.params["hidden_1"]["kernel"][0] - start["hidden_1"]["kernel"])
        assert moved.max() > 1e-3


def test_the_table_is_printed_for_each_parametrization(capsys):
    """At four times the base width: role, and n^-a, n^-c, 1/C for the decay."""
    words = [
        "model.width=256",
        "optimizer=adamw",
        "parametrization=sp,mup",
        "dataset.train_size=60",
    ]
    assert main(["plan", "--show", "parametrization", "-m", *words]) == 0
    told = capsys.readouterr().out
    assert told.count("hidden_2/kernel") == 2
    rows = [line.split("│") for line in told.splitlines() if "hidden_2/kernel" in line]
    shown = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert shown[0][2:4] == ["hidden", "–"]  # without a base width
    assert shown[1][2:4] == ["hidden", "4"]
    assert shown[1][5:] == ["1", "0.25", "4", "1"]
    assert float(shown[1][4]) == pytest.approx(256**-0.5 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("parametrization.table.hidden.c.adam=one", "valid number"),
        ("parametrization.table.hidden.d=1", "parametrization.table.hidden."),
        ("parametrization.shift.output=x", "valid number"),
        ("parametrization.alignment=fully", "'full' or 'none'"),
        ("parametrization.base_width=0", "greater than or equal to 1"),
    ],
)
def test_a_mistake_in_a_table_is_one_line(word, told, capsys):
    assert main(["plan", "parametrization=mup", word]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
