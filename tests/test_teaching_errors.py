"""A user's likely mistakes beyond typos: each is one line that says what, where and what to do.

What is wrong is known before a training program is compiled and before anything is written.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from problems import job

from lmech import building, cli, compiling, config, reproducing, standing, tuning, validation
from lmech.values import ConfigError

QUIET = "steps=3 logger=none observables=[loss] execution.compile_cache=false"
BASE = f"{QUIET} dataset=digits dataset.train_size=50 model.width=4"


def data(name: str, *more: str) -> str:
    """A dataset of ours that is wrong."""
    target = f"dataset._target_=wrong_parts.{name}"
    return " ".join([QUIET, target, "loss=cross_entropy model.width=4", *more])


def part(section: str, name: str, *more: str) -> str:
    """The base run with a part that is wrong."""
    return " ".join(
        [BASE.replace("model.width=4", ""), f"{section}._target_=wrong_parts.{name}", *more]
    )


def net(fault: str, *more: str) -> str:
    """The base run with a net that is wrong."""
    return part("model", "net", f"model.fault={fault}", *more)


def watched(name: str, every: int = 1) -> str:
    """The base run with an observable that is wrong."""
    path = "observables.train_loss"
    return f"{BASE} {path}._target_=wrong_parts.{name} {path}.every={every}"


def looking(observables: str, *more: str) -> str:
    """The base run with other observables."""
    return " ".join([BASE.replace("[loss]", f"[loss,{observables}]"), *more])


# What the user asks for, and what the answer has to have in it, in this order.
MISTAKES: list[tuple[str, Sequence[str]]] = [
    # data
    (data("label_too_large"), ["dataset: ", "train labels go up to 7", "3 classes", "from 0"]),
    (data("labels_as_a_column"), ["train labels have shape (20, 1)", "y[:, 0]"]),
    (data("labels_as_floats"), ["float64 of shape (20,)", "labels are integers [N]"]),
    (data("nan_pixel"), ["x of the train split", "not finite", "nan at [3, 2]", "leave out"]),
    (data("infinite_test_pixel"), ["x of the test split", "inf at [4, 1]"]),
    (data("nan_target"), ["y of the train split", "nan at [1, 0]"]),
    (data("empty_test"), ["the test split is empty"]),
    (data("targets_of_two_widths"), ["(20, 3) (train)", "(20, 4) (test)"]),
    (data("targets_of_two_kinds"), ["float64 (20, 3) (train)", "int32 (20,) (test)"]),
    (data("inputs_of_two_widths"), ["(6,) in the train split and (5,) in the test split"]),
    (data("lists"), ["x of the train split is a list", "make it a NumPy array"]),
    (data("texts"), ["x of the train split is of <U1"]),
    (data("pair"), ["returned a tuple", "lmech.datasets.Data(train, test)", "Examples(x, y)"]),
    (data("none"), ["returned None", "lmech.datasets.Data"]),
    (data("fewer_labels"), ["20 inputs and 19 targets"]),
    (data("no_server"), ["dataset: RuntimeError: the data server is down (wrong_parts.py, line "]),
    (data("real_targets"), ["loss=cross_entropy", "probabilities", "choose loss=mse"]),
    (f"{QUIET} dataset=chebyshev loss=cross_entropy", ["cross_entropy", "choose loss=mse"]),
    # sizes
    (f"{BASE} batch_size=60", ["batch_size=60", "50 training examples", "lower it"]),
    (f"{BASE} batch_size=40 data_fraction=0.5", ["batch_size=40", "keeps 25"]),
    (f"{BASE} microbatch=60", ["microbatch=60", "50 training examples"]),
    (f"{BASE} steps=0", ["steps=0", "greater than or equal to 1"]),
    (f"{BASE} label_noise=2", ["label_noise=2.0", "at most 1"]),
    (f"{BASE} snapshots=[1,10]", ["snapshots=[10]", "steps=3"]),
    (f"{BASE} execution.devices=64", ["execution.devices=64", "lower it"]),
    # learning rates
    (f"{BASE} optimizer.learning_rate=inf", ["optimizer.learning_rate=inf", "finite"]),
    (f"{BASE} optimizer.learning_rate=1e40", ["learning rate is inf", "float32"]),
    (part("schedule", "inverse_root"), ["learning rate is inf at step 0", "schedule"]),
    (part("schedule", "below_zero"), ["learning rate is -", "at least 0", "schedule"]),
    (part("schedule", "one_factor"), ["schedule", "factors [S]", "gave [1] for 3 steps"]),
    (part("schedule", "of_optax"), ["schedule", "(steps [S], horizon) → factors [S]"]),
    (part("schedule", "no_schedule"), ["schedule", "(steps [S], horizon) → factors [S]"]),
    # models
    (net("mixes"), ["mixes examples", "groups of examples"]),
    (net("batch_norm"), ["batch_stats", "lmech.models.layers.BatchNorm"]),
    (net("dropout"), ["dropout", "(wrong_parts.py, line ", "switch dropout"]),
    (net("batch_size"), ["shift", "(wrong_parts.py, line ", "cannot depend on how many"]),
    (net("flat"), ["of 50 inputs the model makes an array [50]", "[N, C]"]),
    (net("summed"), ["of 50 inputs the model makes an array [10]", "[N, C]"]),
    (net("two"), ["the model makes a tuple", "[N, C]"]),
    (net("product"), ["contracting dimensions", "(wrong_parts.py, line "]),
    (part("model", "five_outputs"), ["5 outputs", "10 classes", "take `outputs`"]),
    (part("model", "no_parameters"), ["no parameters", "nothing to train"]),
    (part("model", "none_model"), ["wrong_parts.none_model returned None", "a flax module"]),
    (part("model", "no_licence"), ["no licence for this model (wrong_parts.py, line "]),
    (part("model", "five_output"), ["has no 'five_output'", "did you mean 'five_outputs'"]),
    (f"{BASE} model._target_=no_such_module.net", ["No module named 'no_such_module'"]),
    (f"{BASE} model._target_=broken.net", ["broken.net", "never closed (broken.py, line 1)"]),
    (f"{BASE} model._target_=needy.net", ["no_such_library", "(needy.py, line 1)"]),
    # parametrizations
    (net("three_axes", "parametrization=mup"), ["parameter kernel has 3 axes", "declared.fan_in"]),
    (part("model", "breadth", "parametrization=mup"), ["needs a parameter `width`"]),
    (part("model", "unused_width", "parametrization=mup"), ["grows with `width`", "sp"]),
    (part("parametrization", "no_parametrization"), ["returned None", "lmech.roles.Model"]),
    (part("parametrization", "dict_of_scales"), ["it made a dict, no Scales"]),
    # losses and optimizers
    (part("loss", "mean_loss"), ["the loss of 50 examples is float32 []", "one real number an"]),
    (part("loss", "loss_by_output"), ["float32 [50, 10]", "one real number an example"]),
    (part("loss", "count_loss"), ["int64 [50]", "one real number an example"]),
    (part("loss", "none"), ["returned None", "(outputs, targets)"]),
    (
        f"{BASE} loss=cross_entropy loss.z_loss=0.1 loss.probabilities=stablemax",
        ["loss.z_loss=0.1", "loss.probabilities=stablemax", "set one of the two back"],
    ),
    (part("optimizer", "no_optimizer"), ["factory returned None", "optax transformation"]),
    (part("optimizer", "concrete_optimizer"), ["(wrong_parts.py, line ", "no if, float()"]),
    (part("optimizer", "strange_updates"), ["optimizer: ", "children"]),
    (part("optimizer", "plain_optimizer", "output_scale=2"), ["`growth`", "AS_GRADIENT"]),
    # observables that are wrong
    *(
        (watched(name, every), ["observables.train_loss: ", *told])
        for (name, told), every in zip(
            {
                "no_dict": ["(memory, {name: array})"],
                "no_memory": ["(memory, {name: array})"],
                "growing_memory": ["(2,) after init and (4,) after measure"],
                "nested_values": ["has to be an array"],
                "matrix": ["train_loss has to be a single number"],
                "changing_shape": ["(wrong_parts.py, line ", "jax.lax"],
            }.items(),
            (1, 2, 1, 2, 1, 2),
            strict=True,
        )
    ),
    (watched("branching"), ["observables.train_loss: ", "(wrong_parts.py, line ", "jax.lax"]),
    (watched("no_observable"), ["returned None", "lmech.observables.Observable"]),
    # observables of what cannot give them
    (looking("attention_logits"), ["attention_logits", "leave attention_logits out"]),
    (looking("progress_measures"), ["observables.progress: ", "dataset=modular"]),
    (looking("effective_sharpness", "optimizer=muon"), ["threshold", "leave effective_sharpness"]),
    (looking("activations", "linearized=true"), ["observables.activations: ", "linearized"]),
    (looking("neural_collapse", "linearized=true"), ["neural_collapse", "linearized"]),
    (
        data("class_without_examples").replace("[loss]", "[loss,neural_collapse]"),
        ["neural_collapse", "class 1 there is none among 20", "leave out neural_collapse"],
    ),
    (
        f"{QUIET} dataset=chebyshev".replace("[loss]", "[loss,neural_collapse]"),
        ["needs class labels", "leave neural_collapse out"],
    ),
    (looking("ntk"), ["observables.ntk: examples=100", "50 training examples", "lower it"]),
    # data and model that do not go together
    (f"{BASE} model=transformer model.width=16", ["tokens [N, T]", "a dataset of text"]),
    (f"{BASE} model=cnn", ["images [N, H, W, C]", "dataset.flatten=false"]),
    (
        f"{QUIET} dataset=modular dataset.p=5 data_fraction=0.5 model=cnn",
        ["images [N, H, W, C]", "a model of sequences"],
    ),
    (f"{QUIET} dataset=modular dataset.p=5 data_fraction=0.5", ["tokens", "a model of sequences"]),
    # where results go
    (f"{BASE} output=a_file", ["a_file", "no folder can be made", "another output="]),
    (f"{BASE} output=a_file/deep/er", ["a_file/deep/er", "no folder can be made"]),
    (f"{BASE} output=/proc/here", ["/proc/here", "no folder can be made in /proc"]),
    # sweeps
    (f"-m {BASE} seed=range(0)", ["seed=range(0)", "no value"]),
    (f"-m {BASE} seed=0,0", ["two jobs", "a value is there twice"]),
    (f"-m {BASE} seed=0,1 output=a,b", ["output is the same for all", "2 values", "once for"]),
    (f"-m {BASE} rerun=all,missing", ["rerun is the same for all jobs"]),
    (f"-m {BASE} seed=0,1 execution.lanes=1,2", ["execution.lanes is the same for all jobs"]),
    (f"-m {BASE} observables.test_loss.every=1,2", ["two jobs", "changes no training"]),
]


def said(words: str | list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard error and standard output of a command."""
    code = cli.main(words.split() if isinstance(words, str) else words)
    told = capsys.readouterr()
    return code, told.err, told.out


def in_order(parts: Sequence[str], text: str) -> bool:
    """Whether the parts are in the text, one after another."""
    for wanted in parts:
        _, found, text = text.partition(wanted)
        if not found:
            return False
    return True


@pytest.fixture
def workplace(elsewhere: Path) -> Path:
    """A folder with a file, and two modules that do not import."""
    (elsewhere / "a_file").write_text("not a folder")
    (elsewhere / "broken.py").write_text("def net(outputs:\n")
    (elsewhere / "needy.py").write_text("import no_such_library\n\ndef net(outputs): ...\n")
    return elsewhere


@pytest.mark.parametrize(("words", "parts"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_one_line_before_anything_is_compiled_or_written(
    words, parts, workplace, capsys
):
    before = {path for path in workplace.rglob("*") if "__pycache__" not in path.parts}
    with compiling.counted() as compilations:
        code, error, _ = said(words, capsys)
    assert code == 2
    assert error.startswith("lmech: ")
    assert error.count("\n") == 1
    assert len(error) < 420
    assert in_order(parts, error), error
    assert not compilations.training
    assert not compilations.hits
    after = {path for path in workplace.rglob("*") if "__pycache__" not in path.parts}
    assert after == before


def test_the_mistakes_are_of_at_least_thirty_kinds():
    assert len({tuple(parts) for _, parts in MISTAKES}) >= 30


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("flags", ["", "--verify "])
@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (part("model", "five_outputs"), ["5 outputs", "10 classes"]),
        (net("product"), ["contracting dimensions", "(wrong_parts.py, line "]),
        (part("schedule", "of_optax"), ["schedule"]),
        (watched("no_dict"), ["observables.train_loss: "]),
    ],
)
def test_a_plan_of_what_cannot_work_says_so_in_one_line(flags, words, parts, capsys):
    code, error, _ = said(f"plan {flags}{words}", capsys)
    assert code == 2
    assert error.count("\n") == 1
    assert in_order(parts, error), error


# ------------------------------------------------------------------------------- what is right


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "overrides",
    [
        ["microbatch=7"],  # no divisor: the last one is smaller
        ["batch_size=10", "microbatch=20"],  # the whole batch at once; a split is in parts
        ["data_fraction=0.001"],  # one example
        ["schedule.warmup=100"],
        ["observables.test_loss.every=1000"],  # at both ends
    ],
)
def test_what_is_unusual_and_right_is_not_refused(overrides):
    batch = building.build([job(*overrides)])
    building.check(batch)
    assert batch.program.mode


def test_an_experiments_words_on_an_observable_go_when_it_is_not_chosen():
    """Its YAML sets cadences of presets that the command line leaves out."""
    chosen = ["experiment=edge_of_stability"]
    assert config.resolve(config.compose([*chosen, "observables=[]"]))["observables"] == {}
    kept = config.resolve(config.compose([*chosen, "observables=[sharpness]"]))["observables"]
    whole = config.resolve(config.compose(chosen))["observables"]
    assert kept == {"sharpness": whole["sharpness"]}


def test_an_observable_without_a_target_is_told_which_preset_has_it():
    plain = config.plain(config.compose([]))
    node = {**plain["observables"], "ntk": {"every": 3}}
    with pytest.raises(ConfigError, match=r"ntk has no _target_, only every: add ntk to obs"):
        validation.validated({**plain, "observables": node})


# ------------------------------------------------------------------------------------- memory


def test_runs_that_do_not_fit_into_memory_together_are_refused(workplace, capsys, monkeypatch):
    monkeypatch.setattr(tuning, "free_memory", lambda: 5000)  # bytes; a run has 1,300 of weights
    words = f"-m {BASE} seed=range(8) execution.mode=map"
    code, error, _ = said(f"{words} execution.lanes=8", capsys)
    assert code == 2
    assert in_order(["8 runs together", "smaller execution.lanes"], error)
    monkeypatch.setattr(tuning, "free_memory", lambda: 500)
    code, error, _ = said(words, capsys)
    assert code == 2
    assert in_order(["state of a run", "smaller model"], error)
    assert not (workplace / "outputs").exists()
    code, _, out = said(f"plan {words} execution.lanes=8", capsys)
    assert code == 0
    assert "memory: program 0 takes more than is free: lower execution.lanes" in out


# --------------------------------------------------------------- what another version has left


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished sweep of one run."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(BASE.split()) == 0
    return folder


@pytest.fixture
def copy(trained, tmp_path, monkeypatch):
    """A copy of it, in the working directory; its sweep's folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (manifest,) = tmp_path.glob("outputs/run/*/manifest.jsonl")
    return manifest.parent


def without(sweep: Path, *keys: str) -> None:
    """The manifest's line loses keys, dotted."""
    file = sweep / "manifest.jsonl"
    entry = json.loads(file.read_text())
    for key in keys:
        node, (*sections, last) = entry, key.split(".")
        for section in sections:
            node = node[section]
        del node[last]
    file.write_text(json.dumps(entry) + "\n")


MEASURE = "observables=[trace]"


@pytest.mark.parametrize(
    ("keys", "resumed", "measured"),
    [
        (["config.linearized"], ["no linearized", "another version", "own command"], "another"),
        (["config.snapshots"], ["no snapshots", "another version", "own command"], None),
        (["config.stop.test_loss", "config.stop.test_accuracy"], None, None),
        (["made_of"], ["'made_of'", "only `lmech collect`"], "'made_of'"),
        (["whole", "execution"], ["'whole'", "only `lmech collect`"], "'whole'"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else str(value),
)
def test_results_of_another_version_are_collected_and_what_cannot_be_is_one_line(
    keys, resumed, measured, copy, capsys
):
    without(copy, *keys)
    assert said(f"collect {copy}", capsys)[0] == 0
    code, error, _ = said(f"resume {copy}", capsys)
    assert code == (2 if resumed else 0)
    assert error.count("\n") == bool(resumed)
    assert in_order(resumed or [], error), error
    code, error, out = said(f"measure {copy} {MEASURE}", capsys)
    assert (code > 0) == bool(measured)
    assert (measured or "columns:") in error + out


@pytest.mark.parametrize("name", ["manifest.jsonl", "*/result.json"])
@pytest.mark.parametrize("words", ["collect {}", f"measure {{}} {MEASURE}", "resume {}"])
def test_a_truncated_file_is_one_line_that_names_it(name, words, copy, capsys):
    (file,) = copy.glob(name)
    file.write_text(file.read_text()[:150])
    code, error, _ = said(words.format(copy), capsys)
    assert code == 2
    assert error.count("\n") == 1
    assert in_order([str(file), "damaged"], error), error


def test_weights_of_another_width_are_one_line_with_both_shapes(copy, capsys):
    (result,) = copy.glob("*/result.json")
    start = f"init_from={result.parent.name}@last"
    code, error, _ = said(f"{BASE} model.width=5 {start}", capsys)
    assert code == 2
    assert in_order([start, "hidden_1/bias is [4]", "[5] in this model"], error)
    assert len(list(copy.parent.iterdir())) == 1


# ------------------------------------------------------------------------------ around all that


def test_a_reader_that_has_had_enough_is_no_error():
    """As ``lmech list keys | head -1``: the pipe is closed before anything is written."""
    command = [sys.executable, "-m", "lmech", "list", "keys"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, error = process.communicate()
    assert error == b""
    assert process.returncode == 141


def test_an_experiments_module_that_does_not_import_is_one_line(workplace, monkeypatch):
    monkeypatch.syspath_prepend(workplace)
    node = {"name": "x", "module": "broken", "sweep": {}, "claims": []}
    with pytest.raises(ConfigError, match=r"module=broken: .* \(broken\.py, line 1\)"):
        reproducing._checked("x", node)


def test_a_folder_that_can_be_made_leaves_no_trace_of_the_question(elsewhere):
    standing.check_place(Path("outputs/run/one"))
    assert not list(elsewhere.iterdir())
