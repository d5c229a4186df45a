"""A sweep as a job array, with stand-ins for SLURM's commands; the real ones are in test_slurm."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accidents import cut

from lmech import catalogue, config, engine, locking, manifest, slurm, summing, watching
from lmech.cli import main
from lmech.commands import status
from lmech.commands.submit import cluster_of
from lmech.disk import read_json
from lmech.values import ConfigError

ROOT = Path(__file__).parents[1]
RUN = [
    *("dataset=chebyshev", "model.width=6", "observables=[loss]"),
    *("steps=8", "execution.chunk=2", "execution.mode=map", "logger=none"),
]
SWEEP = ["-m", *RUN, "seed=range(5)"]
SBATCH = """\
#!/bin/bash
# Remembers each script; with $TASKS in the environment it runs the tasks too, one after another.
n=$(($(ls "$SENT" | wc -l) + 1))
cp "$2" "$SENT/$n.sh"
echo "$n;cluster"
for task in $TASKS; do
    SLURM_ARRAY_JOB_ID=$n SLURM_ARRAY_TASK_ID=$task bash "$2" >"$SENT/../log-$task.txt" 2>&1
done
"""
SRUN = '#!/bin/bash\nexec "${@:3}"\n'


@pytest.fixture
def cluster(elsewhere, monkeypatch):
    """sbatch, squeue and srun that are none: the folder of scripts sent; beside it the queue."""
    commands, sent = elsewhere / "bin", elsewhere / "sent"
    for folder in (commands, sent):
        folder.mkdir()
    queue = elsewhere / "queue.txt"
    queue.touch()
    texts = {"sbatch": SBATCH, "squeue": f"#!/bin/bash\ncat {queue}\n", "srun": SRUN}
    for name, text in texts.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SENT", str(sent))
    return sent


def only(folder):
    (sweep,) = folder.glob("outputs/*/*")
    return sweep


def parquet(sweep):
    return {path.parent.name: path.read_bytes() for path in sweep.glob("*/metrics.parquet")}


def scripts(sent):
    return [path.read_text() for path in sorted(sent.iterdir())]


def lines(script):
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if "SBATCH -" in line]


# Settings


def test_the_settings_are_checked_as_all_keys_are():
    assert cluster_of(["cluster.limit=3"]).limit == 3
    assert cluster_of(["cluster=slurm"]) == cluster_of([])


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("cluster.limt=3", "did you mean 'cluster.limit'"),
        ("cluster=slrm", "did you mean 'slurm'"),
        ("cluster.gpus=-1", "cluster.gpus=-1"),
        ("cluster.cpus=two", "cluster.cpus=two"),
        ("cluster.time=4h", "cluster.time=4h"),
        ("cluster.time='2:00'", "not longer than cluster.signal_seconds=120"),
        ("cluster.partition='a b'", "cluster.partition=a b"),
    ],
)
def test_a_mistake_in_the_settings_is_one_line_and_nothing_is_sent(word, why, cluster, capsys):
    assert main(["submit", *RUN, word]) == 2
    error = capsys.readouterr().err
    assert why in error
    assert error.count("\n") == 1
    assert not list(cluster.iterdir())
    assert not (cluster.parent / "outputs").exists()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("word", ["cluster=slurm", "cluster.limit=3"])
def test_no_job_has_the_settings(word, capsys):
    assert main([*RUN, word]) == 2
    assert "goes with lmech submit" in capsys.readouterr().err


def test_a_projects_own_cluster_starts_from_ours(own):
    (own / "conf" / "cluster").mkdir()
    text = "# Mine.\ndefaults: [slurm, _self_]\npartition: big\nsetup: [module load cuda]\n"
    (own / "conf" / "cluster" / "mine.yaml").write_text(text)
    catalogue._options.cache_clear()
    found = cluster_of(["cluster=mine", "cluster.cpus=7"])
    assert found.options[0] == "--partition=big"
    assert (found.setup, found.cpus) == (["module load cuda"], 7)
    assert found.members == cluster_of([]).members


@pytest.mark.parametrize(
    ("time", "expected"),
    [("90", 5400), ("2:30", 150), ("1:00:05", 3605), ("2-1", 176400), ("1-0:30", 88200)],
)
def test_a_time_is_as_long_as_sbatch_reads_it(time, expected):
    assert slurm.seconds(time) == expected


# The script


def test_the_script_asks_for_what_the_settings_say(cluster):
    words = ["partition=short", "gpus=2", "cpus=3", "mem=8G", "limit=5", "members_per_task=2"]
    more = ["cluster.setup=[module load cuda,ulimit -n 4096]", 'cluster.options=["--exclude=n7"]']
    assert main(["submit", *SWEEP, *(f"cluster.{word}" for word in words), *more]) == 0
    (text,) = scripts(cluster)
    sweep = only(cluster.parent)
    assert text == (sweep / "slurm" / "0.sh").read_text()
    assert lines(text) == [
        *("--job-name=lmech-run", "--array=0-2%5", f'--output="{sweep}/slurm/%A_%a.log"'),
        *("--open-mode=append", "--partition=short", "--time=4:00:00", "--mem=8G"),
        *("--nodes=1", "--ntasks=1", "--cpus-per-task=3", "--gpus=2", "--signal=USR1@120"),
        *("--requeue", "--exclude=n7"),
    ]
    place, *before, program = text.partition("--exclude=n7\n\n")[2].splitlines()[:4]
    assert place == f"cd {cluster.parent} || exit"
    assert before == ["module load cuda", "ulimit -n 4096"]
    assert program == (
        f"srun --ntasks=1 --cpus-per-task=3 {sys.executable} -P -m lmech resume {sweep} "
        '--batch "$SLURM_ARRAY_TASK_ID"'
    )
    assert 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' in text


def test_a_signal_goes_to_the_step_and_the_shell_puts_the_task_back(cluster):
    """``B:`` would signal the shell, which has nothing to save."""
    assert main(["submit", *RUN]) == 0
    assert main(["submit", *RUN, "seed=1", "cluster.requeue=false"]) == 0
    first, second = scripts(cluster)
    assert not re.search(r"--signal=\w*B", first)
    assert "--requeue" in lines(first)
    assert "--no-requeue" in lines(second)
    assert "scontrol" not in second
    for number, code in (("1", "75"), ("1", "138"), ("1", "3"), ("2", "75")):
        ended, requeued = ran(cluster / f"{number}.sh", code)
        asked = number == "1" and code != "3"
        assert (ended, requeued) == (0 if asked else int(code), asked)
    assert ran(cluster / "1.sh", "75", SLURM_RESTART_COUNT="200") == (75, False)


def ran(script, code, **more):
    """The shell's exit code, and whether it asked for the task to be put back."""
    commands, asked = script.parents[1] / "bin", script.parents[1] / "asked.txt"
    (commands / "srun").write_text(f"#!/bin/bash\nexit {code}\n")
    (commands / "scontrol").write_text(f'#!/bin/bash\necho "$@" > {asked}\n')
    (commands / "scontrol").chmod(0o755)
    own = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3", **more}
    asked.unlink(missing_ok=True)
    done = subprocess.run(["bash", script], env={**os.environ, **own}, check=False)
    found = asked.is_file() and asked.read_text() == "requeue 5_3\n"
    return done.returncode, found


# The manifest


def test_submitting_fixes_batches_of_so_many_jobs_and_leaves_open_how_they_run(cluster):
    assert main(["submit", *SWEEP, "cluster.members_per_task=2"]) == 0
    entries = manifest.read(only(cluster.parent))
    assert [entry["batch"] for entry in entries] == [0, 0, 1, 1, 2]
    assert [entry["execution"] for entry in entries] == [{"lanes": 2}] * 5


def test_fewer_lanes_that_are_asked_for_make_smaller_batches(cluster):
    words = [*SWEEP, "execution.lanes=3", "cluster.members_per_task=4"]
    assert main(["submit", *words]) == 0
    batches = [entry["batch"] for entry in manifest.read(only(cluster.parent))]
    assert batches == [0, 0, 0, 1, 1]


NO_JAX = """
import glob, sys
from lmech.cli import main
assert main(sys.argv[1:]) == 0
assert main(["status", *glob.glob("outputs/run/*")]) == 0
sys.exit(3 if {"jax", "pandas", "matplotlib"} & set(sys.modules) else 0)
"""


def test_submitting_and_looking_import_no_jax(cluster):
    """The second time: the factories' parameters are remembered then."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", NO_JAX, "submit", *SWEEP]
    here = {"cwd": cluster.parent, "env": environment}
    codes = [subprocess.run(command, check=False, **here).returncode for _ in range(2)]
    assert codes[1] == 0
    assert codes[0] in (0, 3)


def test_the_first_task_says_how_all_batches_of_its_program_run(cluster, capsys):
    """As one process that runs the whole sweep does, though it trains its own batch alone."""
    words = ["-m", *RUN, "data_fraction=0.9,0.4", "seed=0,1"]  # what they differ in makes the room
    assert main([*words, "execution.lanes=2", "output=whole"]) == 0
    (whole,) = cluster.parent.glob("whole/run/*")
    assert main(["submit", *words, "cluster.members_per_task=2"]) == 0
    apart = only(cluster.parent)
    assert main(["resume", str(apart), "--batch", "1"]) == 0
    assert "2 done" in capsys.readouterr().out
    assert len(parquet(apart)) == 2
    records = [[entry["execution"] for entry in manifest.read(sweep)] for sweep in (whole, apart)]
    assert records[0] == records[1]
    assert records[0][0]["room"]
    assert main(["resume", str(apart), "--batch", "0"]) == 0
    assert parquet(apart) == parquet(whole)


def test_who_comes_first_decides_whatever_comes_later(cluster, monkeypatch):
    from lmech import tuning

    words = [word for word in SWEEP if word != "execution.mode=map"]
    assert main(["submit", *words, "cluster.members_per_task=2"]) == 0
    sweep = only(cluster.parent)
    chosen = []
    fastest = tuning.fastest

    def noted(setup, *others):
        chosen.append(len(setup.inputs.horizon))
        return fastest(setup, *others)

    monkeypatch.setattr(tuning, "fastest", noted)
    for batch in ("2", "0"):
        assert main(["resume", str(sweep), "--batch", batch]) == 0
    assert chosen == [2]  # once, and not for the one job of the batch that came first


def test_a_task_whose_batch_is_finished_exits_at_once_and_trains_nothing(cluster, monkeypatch):
    assert main(["submit", *SWEEP, "cluster.members_per_task=2"]) == 0
    sweep = only(cluster.parent)
    assert main(["resume", str(sweep), "--batch", "0"]) == 0

    def fails(*_, **__):
        raise AssertionError

    monkeypatch.setattr(engine, "train", fails)
    before = sorted(sweep.rglob("*"))
    assert main(["resume", str(sweep), "--batch", "0"]) == 0
    assert sorted(sweep.rglob("*")) == before


def test_a_batch_that_is_not_there_is_a_mistake(cluster, capsys):
    assert main(["submit", *SWEEP, "cluster.members_per_task=2"]) == 0
    assert main(["resume", str(only(cluster.parent)), "--batch", "7"]) == 2
    assert "no batch 7: the manifest has 0-2" in capsys.readouterr().err


def test_queued_tasks_read_the_manifest_and_not_the_yaml(cluster, monkeypatch):
    assert main(["submit", *SWEEP]) == 0

    def fails(*_):
        raise AssertionError

    monkeypatch.setattr(config, "compose", fails)
    assert main(["resume", str(only(cluster.parent)), "--batch", "0"]) == 0


def test_whoever_trains_the_whole_sweep_may_be_no_task(cluster):
    assert main(["submit", *SWEEP, "cluster.members_per_task=2"]) == 0
    assert main(SWEEP) == 0
    entries = manifest.read(only(cluster.parent))
    assert [entry["batch"] for entry in entries] == [0, 0, 1, 1, 2]
    assert {entry["execution"]["mode"] for entry in entries} == {"map"}
    assert len(parquet(only(cluster.parent))) == 5


@pytest.mark.slow
def test_an_array_that_runs_ends_as_one_process_does(cluster, own, monkeypatch, capsys):
    """The tasks are processes that the batch script starts; then the claims, without training."""
    words = ["reproduce", "staircase", "steps=3", "model.width=4", "parametrization=sp", "seed=0,1"]
    words += ["execution.mode=map", "logger=none"]
    monkeypatch.setenv("TASKS", "0 1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    assert main(["submit", *words, "cluster.members_per_task=1"]) == 0
    assert "2 tasks: batches 0-1" in capsys.readouterr().out
    sweep = only(own)
    assert len(parquet(sweep)) == 2, (cluster.parent / "log-0.txt").read_text()
    assert main(["status", str(sweep)]) == 0
    assert "judges the claims of staircase without training" in told(capsys)

    def fails(*_, **__):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(engine, "train", fails)
        assert main(["resume", str(sweep)]) == 0
    assert "2 skipped" in capsys.readouterr().out
    assert (sweep / "claims.json").is_file()
    summary = read_json(sweep / "summary.json")
    assert (summary["jobs"], summary["done"], summary["batches"]) == (2, 2, 2)
    assert main([*words, "output=alone", "execution.lanes=1"]) == 0
    (alone,) = own.glob("alone/*/*")
    assert parquet(alone) == parquet(sweep)


# Again


def test_what_is_queued_or_held_or_done_is_not_sent_again(cluster, capsys):
    words = ["submit", *SWEEP, "cluster.members_per_task=1"]
    assert main(words) == 0
    sweep = only(cluster.parent)
    assert main(["resume", str(sweep), "--batch", "1"]) == 0
    queue = cluster.parent / "queue.txt"
    queue.write_text("1 0 RUNNING\n1 3 PENDING\n9 4 PENDING\n1 N/A PENDING\n")
    capsys.readouterr()
    with locking.held(sweep / "batches" / "2.lock"):
        assert main(words) == 0
    out = capsys.readouterr().out
    assert "array:  2, 1 task: batches 4" in out
    assert "queued: batches 0,3 of array 1; not sent again" in out
    assert "held:   batches 2, which a process works on; not sent" in out
    assert "--array=4" in lines(scripts(cluster)[1])
    queue.write_text("1 0 RUNNING\n1 3 PENDING\n2 4 PENDING\n1 2 PENDING\n")
    assert main(words) == 0
    assert len(scripts(cluster)) == 2
    sent = (sweep / "slurm" / "submissions.jsonl").read_text().splitlines()
    assert [json.loads(line)["batches"] for line in sent] == [[0, 1, 2, 3, 4], [4]]


def test_a_finished_sweep_sends_nothing_and_says_what_reads_it(cluster, capsys):
    assert main(["submit", *SWEEP]) == 0
    assert main(["resume", str(only(cluster.parent)), "--batch", "0"]) == 0
    capsys.readouterr()
    assert main(["submit", *SWEEP]) == 0
    assert "nothing to send; `lmech -m dataset=chebyshev" in capsys.readouterr().out
    assert len(scripts(cluster)) == 1


def test_all_of_it_again_waits_for_what_is_queued(cluster, capsys):
    assert main(["submit", *SWEEP]) == 0
    (cluster.parent / "queue.txt").write_text("1 0 PENDING\n")
    assert main(["submit", *SWEEP, "rerun=all"]) == 2
    assert "array 1 has batches of this sweep in the queue" in capsys.readouterr().err
    (cluster.parent / "queue.txt").write_text("")
    assert main(["submit", *SWEEP, "rerun=all"]) == 0
    assert len(scripts(cluster)) == 2


def test_a_queue_that_does_not_answer_sends_nothing(cluster, capsys):
    assert main(["submit", *SWEEP]) == 0
    text = "#!/bin/bash\necho 'slurmctld is down' >&2\nexit 1\n"
    (cluster.parent / "bin" / "squeue").write_text(text)
    assert main(["submit", *SWEEP]) == 2
    assert "slurmctld is down" in capsys.readouterr().err
    assert len(scripts(cluster)) == 1
    assert main(["status", str(only(cluster.parent))]) == 0
    assert "slurmctld is down: what is queued counts as waiting" in told(capsys)


def test_where_there_is_no_slurm_that_is_said(elsewhere, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(elsewhere))
    assert main(["submit", *RUN]) == 2
    error = capsys.readouterr().err
    assert "sbatch: No such file or directory (is SLURM on this machine?)" in error


# Status


def told(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_status_of_a_sweep_half_done(cluster, capsys, monkeypatch):
    """Done, diverged, failed, running, queued and waiting, and the step of a state."""
    words = ["-m", *RUN, "optimizer.learning_rate=0.1,1e30", "seed=0,1,2"]
    assert main(["submit", *words, "cluster.members_per_task=1"]) == 0
    sweep, train = only(cluster.parent), engine.train

    def fails(program, inputs, *rest, **more):
        if 2 in np.asarray(inputs.seeds["init"]):
            raise RuntimeError("the lamp is broken")
        return train(program, inputs, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "train", fails)
        codes = [main(["resume", str(sweep), "--batch", n]) for n in ("0", "2", "3")]
    assert codes == [0, 1, 0]
    cut_off(sweep, monkeypatch, "1")
    (cluster.parent / "queue.txt").write_text("1 4 PENDING\n")
    capsys.readouterr()
    with locking.held(sweep / "batches" / "1.lock"):
        assert main(["status", str(sweep)]) == 0
        found = watching.look(sweep, {4: (1, "PENDING")})
    assert [batch.status for batch in found] == [
        *("done", "running", "failed", "diverged", "queued", "waiting")
    ]
    assert watching.total(found) == dict.fromkeys(watching.STATUSES, 1)
    assert (found[1].step, found[1].horizon) == (4, 8)
    text = told(capsys)
    assert "step 4 of 8" in text
    assert "3 of 6 jobs" in text
    assert "pending in array 1" in text
    assert "rerun=failed tries them" in text


def cut_off(sweep, monkeypatch, batch):
    """Its process dies when it has saved a second state."""
    words = ["resume", str(sweep), "--batch", batch, "execution.save_every=0"]
    with monkeypatch.context() as patch, pytest.raises(cut(patch)):
        main(words)


def test_status_of_a_damaged_folder_says_so_and_goes_on(cluster, capsys, monkeypatch):
    assert main(["submit", *SWEEP, "cluster.members_per_task=1"]) == 0
    sweep = only(cluster.parent)
    cut_off(sweep, monkeypatch, "0")
    (sweep / "batches" / "0" / "state.npz").write_bytes(b"half a sta")
    assert main(["resume", str(sweep), "--batch", "1"]) == 0
    (result,) = sweep.glob("*/result.json")
    result.write_text(result.read_text()[:40])
    capsys.readouterr()
    assert main(["status", str(sweep)]) == 0
    assert "damaged: delete its folder" in told(capsys)
    assert watching.total(watching.look(sweep, {}))["waiting"] == 5
    (sweep / "manifest.jsonl").write_text("{")
    assert main(["status", str(sweep)]) == 2
    assert main(["status", str(cluster)]) == 2


def test_a_result_that_lacks_what_is_asked_for_now_is_not_done(cluster):
    assert main(["submit", *RUN]) == 0
    sweep = only(cluster.parent)
    assert main(["resume", str(sweep), "--batch", "0"]) == 0
    assert watching.total(watching.look(sweep, {}))["done"] == 1
    assert main(["submit", *RUN, "observables=[loss,weights]"]) == 0
    assert watching.total(watching.look(sweep, {}))["waiting"] == 1
    (batch,) = {entry["batch"] for entry in manifest.read(sweep)}
    assert main(["resume", str(sweep), "--batch", str(batch)]) == 0
    assert watching.total(watching.look(sweep, {}))["done"] == 1
    assert main(["submit", *RUN, "observables=[loss,weights]", "snapshots=[4]"]) == 0
    assert watching.total(watching.look(sweep, {}))["waiting"] == 1


@pytest.mark.usefixtures("cluster")
def test_jobs_of_another_sweep_are_told_apart(elsewhere, capsys):
    assert main([*RUN, "seed=1", "name=other"]) == 0
    assert main(["submit", *SWEEP]) == 0
    (sweep,) = elsewhere.glob("outputs/run/*")
    capsys.readouterr()
    assert main(["status", str(sweep)]) == 0
    assert "of other sweeps" in told(capsys)


@pytest.mark.parametrize(("fraction", "full"), [(0, 0), (0.5, 20), (0.999, 39), (1, 40)])
def test_the_bar_is_full_when_all_is_done_and_not_before(fraction, full):
    assert status.bar(fraction).count("█") == full


# Small parts


def test_numbers_are_told_in_spans():
    assert manifest.spans([5, 0, 1, 2, 7, 8]) == "0-2,5,7-8"
    assert manifest.spans([]) == ""


def test_a_summary_adds_up_those_of_the_batches(tmp_path):
    part = dict.fromkeys(summing.COUNTED, 0) | {"compilations": 1, "cached_compilations": 0}
    parts = [
        {**part, "jobs": 3, "done": 2, "diverged": 1, "seconds": {"wall": 2.0, "run": 1.5}},
        {**part, "jobs": 1, "done": 1, "seconds": {"wall": 0.5, "run": 0.5}},
    ]
    for number, own in zip((10, 9), parts, strict=True):
        summing.write(tmp_path, number, {**own, "provenance": {"batch": number}})
    summing.add_up(tmp_path)
    found = read_json(tmp_path / "summary.json")
    assert (found["jobs"], found["done"], found["diverged"], found["batches"]) == (4, 3, 1, 2)
    assert found["seconds"] == {"wall": 2.5, "run": 2.0}
    assert (found["compilations"], found["provenance"]) == (2, {"batch": 9})
    summing.write(tmp_path, None, parts[0])
    summing.add_up(tmp_path)
    assert read_json(tmp_path / "summary.json")["jobs"] == 3


def test_the_holder_of_a_lock_is_seen_and_left_alone(tmp_path):
    lock = tmp_path / "batches" / "0.lock"
    assert locking.holder(lock) is None
    with locking.held(lock):
        assert locking.holder(lock) == locking.socket.gethostname()
        assert lock.exists()
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert locking.holder(lock) == "elsewhere"
    os.utime(lock, (0, 0))
    assert locking.holder(lock) is None
    assert lock.exists()


def test_no_task_of_an_array_joins_the_others():
    """Tasks share a folder and nothing else: nobody starts JAX's own clusters, which would wait."""
    named = {
        path.name
        for folder in ("lmech", "experiments")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("distributed", "initialize")
    }
    assert named == {"together.py"}  # where the config asks for several processes, and nowhere else


@pytest.mark.usefixtures("cluster")
def test_a_task_is_one_process(capsys):
    words = ["execution.processes=2", "execution.share=examples"]
    assert main(["submit", *RUN, *words]) == 2
    assert "srun" in capsys.readouterr().err


def test_a_queue_line_that_is_no_batch_of_ours_is_passed_over(cluster):
    (cluster.parent / "queue.txt").write_text("3 1 PENDING\n4 1 RUNNING\n3 N/A RUNNING\n")
    assert slurm.queue([3]) == {1: (3, "PENDING")}
    assert slurm.queue([]) == {}


def test_what_sbatch_answers_is_an_id_or_a_mistake(cluster):
    (cluster.parent / "bin" / "sbatch").write_text("#!/bin/bash\necho hello\n")
    with pytest.raises(ConfigError, match="names no job: 'hello'"):
        slurm.send(cluster)
