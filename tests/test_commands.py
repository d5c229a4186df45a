"""The commands that the documentation shows: each is run, or a reason is given why not."""

import json
import re
import shlex
import shutil

import pytest
from commands import ROOT, indented

from lmech import launching, reproducing
from lmech.cli import COMMANDS, main

SMALL = ["dataset.train_size=20", "model.width=4", "steps=2", "logger=none"]
FINISHED = ["-m", *SMALL, "seed=0,1", "snapshots=[1]"]

# What the README shows, with the words that make a test of it: `…` and brackets are filled in.
READING = {
    "lmech plan [--verify] …": ["plan", *FINISHED],
    "lmech list [experiments|models|…|keys]": ["list", "experiments"],
    "lmech resume outputs/run/3f… [rerun=failed]": ["resume", "SWEEP", "rerun=failed"],
    "lmech collect outputs --to all.parquet": ["collect", "outputs", "--to", "all.parquet"],
    "lmech report outputs/run/3f…": ["report", "SWEEP"],
}
TRAINING = {
    "lmech dataset=digits optimizer=adam steps=500": [],
    "lmech -m seed=0,1,2 optimizer.learning_rate=0.1,0.2": [],
    "lmech -m 'optimizer.learning_rate=geomspace(2**-8, 1, 20)'": [],
    "lmech -m rate_unit=inverse_sharpness optimizer.learning_rate=0.5,1,2,4": [],
    "lmech reproduce edge_of_stability seed=0,1": ["optimizer.learning_rate=0.1,0.2"],
    "lmech -m sweep=learning_rate model.width=64,256": ["model.width=4,5"],
    "lmech measure outputs 'observables=[ntk,trace]'": [
        "observables.ntk.examples=5",
        "observables.ntk.k=2",
    ],
    "lmech init_from=JOB@100 …": ["init_from=JOB@1"],
}
EXEMPT = {
    "make quickstart": "CI runs it from a fresh clone",
    "make test": "CI runs it",
    "lmech submit -m seed=0,1,2 model.width=64,128": "tests/test_submitting.py, test_slurm.py",
    "lmech verify": "tests/test_golden.py has the same numbers, one by one",
    "lmech -m hydra/launcher=joblib seed=0,1,2,3": "tests/test_hydra.py, smaller",
    "lmech -m hydra/sweeper=optuna hydra.sweeper.n_trials=40 hydra.sweeper.n_jobs=8 "
    "'optimizer.learning_rate=tag(log, interval(0.01, 1))'": "tests/test_hydra.py, smaller",
}
VERDICTS = {0, 1, 2}
"""Exit codes of an experiment: a short training decides nothing."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished sweep of two runs."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(FINISHED) == 0
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """The working directory is a copy of that folder; what the documentation's words stand for."""
    folder = shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(folder)
    (sweep,) = folder.glob("outputs/run/*")
    first = (sweep / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[0]
    return {"SWEEP": str(sweep), "JOB": json.loads(first)["id"]}


def filled(words, stands):
    return [re.sub("SWEEP|JOB", lambda found: stands[found[0]], word) for word in words]


def test_every_command_of_the_readme_is_run_or_exempt_with_a_reason():
    shown = [re.sub(r"\s+", " ", line) for line in indented("README.md")]
    assert sorted(shown) == sorted([*READING, *TRAINING, *EXEMPT])


@pytest.mark.parametrize("command", READING)
def test_commands_of_the_readme_that_read(here, command):
    assert main(filled(READING[command], here)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAINING)
def test_commands_of_the_readme_that_train(here, command):
    shown = [word for word in shlex.split(command)[1:] if "…" not in word and "JOB" not in word]
    own = [] if "measure" in shown else SMALL
    several = [word for word in own if not any(word[:11] == set_[:11] for set_ in shown)]
    code = main([*shown, *several, *filled(TRAINING[command], here)])
    assert code in (VERDICTS if "reproduce" in shown else {0})


# ------------------------------------------------------------------- all pages

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")),
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("experiments/*/README.md")),
]
WRITTEN = {"linear_stability", "small_steps", "staircase"}
"""Experiments that the pages themselves write."""
PLACEHOLDER = re.compile(r"…|[<>$]|\b[A-Z]{2,}\b|\.\.\.")


def told(page):
    """Every command of lmech in a page, in blocks and in sentences, that has no placeholder."""
    text = (ROOT / page).read_text(encoding="utf-8")
    inline = re.findall(r"`(lmech [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    fenced = re.findall(r"^(lmech .*)$", "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S)))
    shown = [*indented(page), *inline, *fenced]
    return [line for line in shown if line.startswith("lmech ") and not PLACEHOLDER.search(line)]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_the_docs_is_one_and_its_keys_exist(page):
    for line in told(page):
        # `cluster` is no key of a job; a job to start from is one of the reader's.
        words = shlex.split(line.replace("--show parametrization", ""))[1:]
        words = [word for word in words if not word.startswith(("cluster", "init_from"))]
        own = [word for word in words if word not in ("-m", "submit", "plan")]
        name = own[0] if own and "=" not in own[0] and own[0][0] != "-" else ""
        assert name in ("", *COMMANDS), line
        if name == "reproduce" and len(own) > 1 and own[1] not in {"--all", *WRITTEN}:
            flags = [word for word in own[2:] if word not in ("--scale", "--verify")]
            scale = own[own.index("--scale") + 1] if "--scale" in own else "default"
            keys = [word for word in flags if word != scale]
            assert reproducing.load(own[1], scale, keys).claims, line
        elif not name and own and not any(map(launching.is_hydras, own)):
            keys = [word for word in own if word[0] != "-"]
            assert launching.jobs_of(keys, multirun="-m" in words) or not keys, line
