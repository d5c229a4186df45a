"""Whatever text, bytes or secrets come in, what goes out is one of the project's own errors."""

import ast
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import sweep_folders
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmech import collecting, launching, paths
from lmech.cli import main
from lmech.disk import DamagedFileError, read_json, read_table
from lmech.mistakes import ConfigError

ROOT = Path(__file__).parents[1]
KEY = "marker0123456789abcdefmarker0123456789ab"
SMALL = ["dataset.train_size=20", "model.width=4", "steps=2"]

# ------------------------------------------------------------------- any text as an override

KEYS = [
    *("model", "model.width", "optimizer.learning_rate", "observables", "dataset", "seed", "steps"),
    *("sweep", "experiment", "snapshots", "init_from", "stop.train_loss", "schedule", "logger"),
    *("observables.sharpness.every", "parametrization.base_width", "name", "output", "subspace"),
    *("data_fraction", "rate_unit", "execution.mode", "cluster", "~model", "+x", "++model.width"),
    *("model@x", "a.b", "", "precision"),
]
VALUES = [
    *("[", "}", "[]", "{}", "null", "-1", "1e400", "nan", "0.1,0.2", "range(3)", "range(0)"),
    *("geomspace(0,1,3)", "geomspace(1)", "choice(1,2)", "[1,2]", "{a:1}", "'x", "${seed}", "${x}"),
    *("${oc.env:HOME}", "???", "x: y", "!!python/none", "glob(*)", "interval(0,1)", "0x10"),
    *("sort(3,1)", "shuffle(1,2)", "cast", "int(3)", "json_str(1)", "extend_list(1)", "\x00"),
]
value = st.one_of(st.text(max_size=12), st.sampled_from(VALUES), st.floats().map(str))
key = st.one_of(st.sampled_from(KEYS), st.text(max_size=8))
word = st.one_of(st.text(max_size=20), st.tuples(key, value).map("=".join))


@settings(
    max_examples=150,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(words=st.lists(word, min_size=1, max_size=2), several=st.booleans())
def test_any_text_as_an_override_gives_jobs_or_a_config_error(elsewhere, words, several):
    with suppress(ConfigError):
        assert all(job.id for job in launching.jobs_of(list(words), multirun=several))
    assert list(elsewhere.iterdir()) == []


# ------------------------------------------------------------------- any bytes in a sweep's folder

SWEEP = Path("outputs/run/aaa")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished sweep, to be damaged in copies."""
    folder = tmp_path_factory.mktemp("whole")
    sweep_folders.write(folder / SWEEP)
    return folder


def read(folder):
    """What reads a sweep back: each gives a result or an error of ours."""
    found = []
    for function in (collecting.collect, collecting.read_runs, collecting.read_jobs):
        path = folder if function is collecting.collect else folder / SWEEP
        try:
            found.append(function(path))
        except (DamagedFileError, ConfigError) as error:
            found.append(error)
    return found


def damaged(folder, name):
    (file,) = sorted((folder / SWEEP).glob(name))[:1]
    return file


FILES = ["manifest.jsonl", "job*/result.json", "job*/config.yaml", "job*/metrics.parquet"]


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=40, derandomize=True)
@given(data=st.data())
def test_garbled_and_cut_files_are_errors_that_name_them(whole, name, data):
    file = damaged(whole, name)
    before = file.read_bytes()
    at = st.integers(0, len(before) - 1)
    content = bytearray(before[: data.draw(at)] if data.draw(st.booleans()) else before)
    for place in data.draw(st.lists(at, max_size=12)):
        content[place : place + 1] = bytes([data.draw(st.integers(0, 255))])
    try:
        file.write_bytes(data.draw(st.one_of(st.just(bytes(content)), st.binary(max_size=40))))
        for result in read(whole):
            if isinstance(result, DamagedFileError):
                assert str(file) in str(result)
                assert "\n" not in str(result)
    finally:
        file.write_bytes(before)


def lines(name):
    """A mapping with each key left out, or set to something else."""
    first = {"manifest.jsonl": {"id": "a", "overrides": {}}, "result.json": {"status": "done"}}
    for key_ in first[name]:
        yield {k: v for k, v in first[name].items() if k != key_}
        yield from ({**first[name], key_: wrong} for wrong in (None, 3, []))
    yield from (None, [], 3, "text")


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, line) for name in ("manifest.jsonl", "result.json") for line in lines(name)],
)
def test_files_of_another_shape_are_errors_that_name_them(whole, tmp_path, name, content):
    folder = shutil.copytree(whole, tmp_path / "copy")
    file = damaged(folder, name if name == "manifest.jsonl" else f"job*/{name}")
    file.write_text(f"{json.dumps(content)}\n", encoding="utf-8")
    for result in read(folder):
        assert isinstance(result, DamagedFileError)
        assert str(file) in str(result)


def test_an_empty_manifest_and_a_table_without_steps_are_damaged(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    table = damaged(folder, "job*/metrics.parquet")
    pd.DataFrame({"loss": [1.0]}).to_parquet(table)
    with pytest.raises(DamagedFileError, match=r"metrics\.parquet is damaged"):
        collecting.collect(folder)
    with pytest.raises(DamagedFileError, match=r"metrics\.parquet is damaged"):
        collecting.read_runs(folder / SWEEP)
    damaged(folder, "manifest.jsonl").write_text("")
    table.write_bytes(table.read_bytes()[:50])
    with pytest.raises(DamagedFileError, match=r"metrics\.parquet is damaged"):
        read_table(table)
    with pytest.raises(DamagedFileError, match="no line"):
        collecting.collect(folder)


def test_what_the_system_says_of_a_file_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
    with pytest.raises(IsADirectoryError):
        read_json(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["collect", "outputs", "--to", "all.csv"],
        ["report", "outputs"],
    ],
    ids=lambda words: words[0],
)
def test_on_the_command_line_a_damaged_file_is_one_line(
    whole, tmp_path, monkeypatch, capsys, words
):
    folder = shutil.copytree(whole, tmp_path / "copy")
    file = damaged(folder, "job*/metrics.parquet")
    file.write_bytes(file.read_bytes()[:100])
    monkeypatch.chdir(folder)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("lmech: outputs/run/aaa/job")
    assert said.count("\n") == 1
    assert not (folder / "all.csv").exists()


# ------------------------------------------------------------------- secrets


@pytest.mark.slow
def test_no_file_of_a_run_holds_what_the_environment_keeps_secret(elsewhere, monkeypatch):
    for name in ("WANDB_API_KEY", "MY_TOKEN", "SERVICE_PASSWORD"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("PLACE", "here")
    words = ["logger=[console,tensorboard,wandb]", "name=${oc.env:PLACE}", "seed=0,1"]
    assert main(["-m", *SMALL, *words]) == 0
    (sweep,) = elsewhere.glob("outputs/here/*")
    assert any((sweep / "wandb").rglob("*.wandb"))
    cache = Path(os.environ["LMECH_CACHE"])
    for file in [*elsewhere.rglob("*"), *cache.glob("*.json")]:
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    "text",
    [
        "name=${oc.env:WANDB_API_KEY}",
        "name=${oc.env:my_token,none}",
        "objective=${oc.env:SERVICE_PASSWORD}",
        "observables=[loss,'${oc.env:AWS_SECRET_ACCESS_KEY}']",
    ],
)
def test_a_key_is_not_set_to_a_secret_of_the_environment(elsewhere, monkeypatch, capsys, text):
    for name in ("WANDB_API_KEY", "my_token", "SERVICE_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, KEY)
    assert main([text]) == 2
    said = capsys.readouterr()
    assert KEY not in said.out + said.err
    assert list(elsewhere.iterdir()) == []


def test_other_variables_of_the_environment_may_be_in_a_config(monkeypatch):
    monkeypatch.setenv("MONKEYS", "three")
    (job,) = launching.jobs_of(["name=${oc.env:MONKEYS}"], multirun=False)
    assert job.config["name"] == "three"


# ------------------------------------------------------------------- what code could come from


def test_the_cache_of_compiled_programs_is_its_owners_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("LMECH_CACHE", str(tmp_path / "cache"))
    before = os.umask(0o002)
    try:
        folder = paths.private_cache("xla", "kind")
    finally:
        os.umask(before)
    assert {f.stat().st_mode & 0o777 for f in (folder, *folder.parents[:2])} == {0o700}
    for place in (folder, *folder.parents[:2]):  # above it, another could take its place
        place.chmod(0o770)
        assert paths.private_cache("xla", "kind") is None
        place.chmod(0o700)
    assert paths.private_cache("xla", "kind") == folder


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_arrays_are_read_and_written_without_pickle():
    found = {}
    for file in [*ROOT.glob("lmech/**/*.py"), *ROOT.glob("experiments/**/*.py")]:
        for call in calls(ast.parse(file.read_text(encoding="utf-8"))):
            if ast.unparse(call.func) in ("np.load", "np.save", "np.savez", "np.savez_compressed"):
                stated = {word.arg: ast.unparse(word.value) for word in call.keywords}
                found[f"{file.relative_to(ROOT)}:{call.lineno}"] = stated.get("allow_pickle")
    assert set(found.values()) == {"False"}, found


def test_pickle_is_read_where_it_came_from_a_process_of_ours_alone():
    found = {
        str(file.relative_to(ROOT))
        for file in ROOT.glob("lmech/**/*.py")
        for call in calls(ast.parse(file.read_text(encoding="utf-8")))
        if ast.unparse(call.func).endswith(("pickle.load", "pickle.loads", "Unpickler"))
    }
    # A pipe from the training, the first process of a run, and known types alone from the memo.
    assert found == {"lmech/loggers/__main__.py", "lmech/together.py", "lmech/signatures.py"}
