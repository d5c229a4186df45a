"""Job arrays on a real SLURM, where there is one: sbatch on the path and $SLURM_CONF."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

import lmech
from lmech import manifest, watching
from lmech.cli import main

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        not (os.environ.get("SLURM_CONF") and shutil.which("sbatch")),
        reason="needs sbatch, and $SLURM_CONF",
    ),
]

RUN = [
    *("dataset=digits", "dataset.train_size=60", "model.width=8", "observables=[loss]"),
    *("optimizer=adam", "batch_size=20", "execution.mode=map", "logger=none"),
]
ONE = ["cluster.cpus=1", "cluster.time='10'", "cluster.signal_seconds=60"]
PATIENCE = 900.0
"""Seconds: other work may keep the node's processors."""


@pytest.fixture(autouse=True)
def tasks_find_us(monkeypatch):
    """sbatch hands on the environment."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def told(*command):
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout


def only(folder):
    (sweep,) = folder.glob("outputs/run/*")
    return sweep


def sent(sweep):
    text = (sweep / "slurm" / "submissions.jsonl").read_text()
    return [json.loads(line)["array"] for line in text.splitlines()]


def in_queue(array):
    """Batch → state, of an array's tasks that are in the queue."""
    rows = told("squeue", "--noheader", "--array", "--me", "--format=%F %K %T").splitlines()
    found = [row.split() for row in rows]
    return {batch: state for whose, batch, state in found if whose == str(array)}


def wait_until(what, sweep):
    """Until that is so. The tasks' logs go with a failure."""
    started = time.monotonic()
    while not what():
        if time.monotonic() - started > PATIENCE:
            pytest.fail("\n".join(path.read_text() for path in sweep.glob("slurm/*.log")))
        time.sleep(0.2)


def files(folder):
    """What a sweep's jobs leave, as bytes."""
    kept = [path for path in folder.rglob("*") if path.suffix in (".parquet", ".npz")]
    kept += folder.glob("*/result.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_an_array_ends_as_a_local_run_and_what_is_on_its_way_is_not_sent_again(elsewhere, capsys):
    words = ["-m", *RUN, "steps=40", "seed=range(8)"]
    sizes = ["cluster.members_per_task=2", "cluster.limit=1"]
    assert main(["submit", *words, *ONE, *sizes]) == 0
    sweep = only(elsewhere)
    (array,) = sent(sweep)
    assert in_queue(array).keys() == {"0", "1", "2", "3"}
    capsys.readouterr()
    assert main(["submit", *words, *ONE, *sizes]) == 0
    assert "batches 0-3 of array" in capsys.readouterr().out
    assert sent(sweep) == [array]
    assert main(["status", str(sweep)]) == 0
    text = capsys.readouterr().out
    assert f"pending in array {array}" in " ".join(text.split())
    wait_until(lambda: not in_queue(array), sweep)
    assert watching.total(watching.look(sweep, {}))["done"] == 8
    capsys.readouterr()
    assert main(["submit", *words, *ONE, *sizes]) == 0
    assert "nothing to send" in capsys.readouterr().out
    assert sent(sweep) == [array]
    assert main(["-m", *words[1:], "output=here", "execution.lanes=2"]) == 0
    (here,) = elsewhere.glob("here/run/*")
    records = [[entry["execution"] for entry in manifest.read(at)] for at in (sweep, here)]
    assert records[0] == records[1]
    assert lmech.collect(sweep).equals(lmech.collect(here))
    assert files(sweep) == files(here)


def test_a_task_that_is_signalled_goes_back_into_the_queue_and_ends_with_the_same_bytes(elsewhere):
    words = [*RUN, "steps=20000", "observables.train_loss.every=100", "execution.save_every=0"]
    assert main(["submit", *words, *ONE]) == 0
    sweep = only(elsewhere)
    (array,) = sent(sweep)
    task, state = f"{array}_0", sweep / "batches" / "0" / "state.npz"
    wait_until(state.is_file, sweep)
    told("scancel", "--signal=USR1", task)  # the steps, as at the end of their time; not the shell
    wait_until(lambda: in_queue(array) == {"0": "PENDING"}, sweep)
    assert "Restarts=1" in told("scontrol", "show", "job", task)
    assert not list(sweep.glob("*/result.json"))
    (batch,) = watching.look(sweep, {0: (array, "PENDING")})
    assert batch.status == "queued"
    assert 0 < batch.step < 20000
    # It would wait two minutes; at once its node takes it for the one that has just been killed.
    told("scontrol", "update", f"JobId={task}", "StartTime=now+10")
    wait_until(lambda: not in_queue(array), sweep)
    log = (sweep / "slurm" / f"{task}.log").read_text()
    assert "stopped by SIGUSR1 at step" in log
    assert main([*words, "output=here"]) == 0
    (here,) = elsewhere.glob("here/run/*")
    assert files(sweep) == files(here)


@pytest.mark.slow
def test_hydras_own_slurm_launcher_returns_results_with_no_accounting(elsewhere):
    """submitit asks sacct how its jobs are; where that does not answer, their results do."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    words = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1"]
    limit = ["hydra.launcher.timeout_min=10"]
    assert main(["-m", *words, *limit, *RUN, "steps=20", "seed=0,1"]) == 0
    theirs = list(elsewhere.glob("outputs/run/*/*/metrics.parquet"))
    assert len(theirs) == 2
    assert main(["-m", *RUN, "steps=20", "seed=0,1", "output=here"]) == 0
    for path in theirs:
        (same,) = elsewhere.glob(f"here/run/*/{path.parent.name}/metrics.parquet")
        assert path.read_bytes() == same.read_bytes()
