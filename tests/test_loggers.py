"""TensorBoard and wandb: what they hold is what lies on disk, whatever happened on the way.

wandb is the real package, offline: its files are read back with its own protobuf messages. No
server is there; what a server would answer is a stand-in's.
"""

import json
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tensorboardX.proto.event_pb2 import Event
from wandb.proto.wandb_internal_pb2 import Record

from lmech import config, locking, planning, states
from lmech.cli import main
from lmech.loggers import following
from lmech.loggers.replay import MANIFEST, SHORT, Beside, Replay
from lmech.loggers.tensorboard import tensorboard
from lmech.loggers.wandb import Runs, wandb, without_secrets

KEY = "a5ec2e7" * 6  # nobody's
FAST = ("dataset=chebyshev", "observables=[loss]", "model.width=6", "steps=6")


@pytest.fixture(scope="module", autouse=True)
def _no_home(tmp_path_factory):
    """wandb as it is for somebody who has never logged in; its service ends with the module."""
    import wandb as real

    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "NETRC"):
            patch.setenv(name, str(home / name.lower()))
        yield
        real.teardown()
    names = [child.name() for child in psutil.Process().children(recursive=True)]
    assert not [name for name in names if "wandb" in name]


# ------------------------------------------------------------------------------- a sweep on disk


def write_job(folder, table, status="done", **result):
    folder.mkdir(parents=True, exist_ok=True)
    final = {}
    if table is not None:
        pq.write_table(table, folder / "metrics.parquet")
        last = {name: table[name].drop_null()[-1].as_py() for name in table.column_names[1:]}
        final = {k: v if np.isfinite(v).all() else None for k, v in last.items()}
    else:
        (folder / "error.txt").write_text("Traceback\nValueError: no such thing\n")
    told = {"id": folder.name, "status": status, "nonfinite_at": None, "final": final, **result}
    (folder / "result.json").write_text(json.dumps(told))


def table(seed, steps=20):
    rng = np.random.default_rng(seed)
    sparse = [float(x) if step % 5 == 0 else None for step, x in enumerate(rng.normal(size=steps))]
    long = [rng.normal(size=SHORT + 9) if step % 10 == 0 else None for step in range(steps)]
    if long[10] is not None:
        long[10][3] = np.nan
    return pa.table(
        {
            "step": pa.array(range(steps), pa.int64()),
            "loss": pa.array(rng.random(steps).astype(np.float32)),
            "sharpness": pa.array(sparse),
            "short": pa.array(list(rng.normal(size=(steps, 3))), pa.list_(pa.float64())),
            "long": pa.array(long, pa.list_(pa.float64())),
        }
    )


def entry(job, seed, **chosen):
    settings = {"objective": "loss", "experiment": "trial", "seed": seed, "logger": {}, **chosen}
    whole = {"id": job, "whole": f"whole-{job}", "overrides": {"seed": seed}, "config": settings}
    return json.dumps(whole) + "\n"


def written(root, jobs, others=()):
    """A sweep folder whose jobs have ended."""
    sweep = root / "outputs" / "trial" / "5eeb"
    sweep.mkdir(parents=True)
    secret = {"dataset": {"api_key": KEY, "path": "here"}}
    lines = [entry(job, seed, **secret) for seed, job in enumerate([*jobs, *others])]
    (sweep / MANIFEST).write_text("".join(lines))
    for job, what in jobs.items():
        write_job(sweep / job, *what[:1], **what[1])
    (sweep / "request.json").write_text(json.dumps({"experiment": "trial"}))
    counts = dict.fromkeys(("done", "diverged", "failed", "skipped", "missing"), 0)
    (sweep / "summary.json").write_text(json.dumps({"jobs": len(jobs), **counts}))
    claim = {"claim": "all is well", "measured": 0.5, "unit": "", "interval": [0, 1]}
    claim |= {"verdict": "holds", "expected": "holds", "source": "theory"}
    (sweep / "claims.json").write_text(json.dumps([claim]))
    from matplotlib.figure import Figure

    Figure(figsize=(2, 1), dpi=50).savefig(sweep / "figure.png")
    return sweep


def diverged():
    values = pa.array([1.0, np.inf, np.nan], pa.float32())
    return pa.table({"step": pa.array([0, 1, 2], pa.int64()), "loss": values})


def some(root):
    jobs = {
        "aaaa": (table(0), {}),
        "bbbb": (diverged(), {"status": "diverged", "nonfinite_at": 2, "steps": 2}),
        "cccc": (None, {"status": "failed"}),
    }
    return written(root, jobs)


# --------------------------------------------------------------------------------- reading back


def wandb_records(file):
    """The messages of a ``.wandb`` file: LevelDB's log format behind seven bytes of wandb's."""
    data, place, message = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # no head fits into the block
            place += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if kind == 0:  # the block's rest is empty
            place += left
            continue
        piece = data[place + 7 : place + 7 + length]
        assert len(piece) == length
        assert zlib.crc32(piece, zlib.crc32(bytes([kind]))) == checksum
        message += piece
        if kind in (1, 4):  # whole, or the last piece
            record = Record()
            record.ParseFromString(message)
            yield record
            message = b""
        place += 7 + length


def wandb_run(file):
    """One run: rows by step, summary, tags, config, exit code."""
    found = SimpleNamespace(rows={}, summary={}, tags=[], config={}, exits=[], run=None)
    for record in wandb_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run, found.tags = record.run, list(record.run.tags)
            found.config |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
        elif kind == "history":
            row = nested(record.history.item)
            found.rows.setdefault(row["step"] if "step" in row else row["_step"], []).append(row)
        elif kind == "summary":
            found.summary |= nested(record.summary.update)
        elif kind == "exit":
            found.exits.append(record.exit.exit_code)
    return found


def nested(items):
    found = {}
    for told in items:
        *above, last = told.nested_key or [told.key]
        place = found
        for name in above:
            place = place.setdefault(name, {})
        place[last] = item(told)
    return found


def item(told):
    kind = told.WhichOneof("value") if hasattr(told, "value") else None
    if kind in ("number", "integer", "text", "boolean"):
        return getattr(told, kind)
    return json.loads(told.value_json)


def runs_in(sweep):
    files = sorted((sweep / "wandb").glob("*run-*/*.wandb"))
    return {file.stem.removeprefix("run-"): wandb_run(file) for file in files}


def events(folder):
    """Tag → list of (step, what)."""
    found = {}
    for file in sorted(folder.glob("events.*")):
        data, place = file.read_bytes(), 0
        while place + 12 <= len(data):
            (length,) = struct.unpack("<Q", data[place : place + 8])
            if place + 16 + length > len(data):
                break  # it is just being written
            event = Event()
            event.ParseFromString(data[place + 12 : place + 12 + length])
            place += 16 + length
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value))
    return found


def rows_of(source):
    """Step → recorded values of a Parquet table."""
    rows = {}
    for cells in source.to_pylist():
        step = cells.pop("step")
        rows[step] = {name: value for name, value in cells.items() if value is not None}
    return rows


def same(one, other):
    return one == other or (np.isnan(one) and np.isnan(other))


# ------------------------------------------------------------------------------------------ wandb


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A sweep that was replayed twice, with a key in the environment."""
    sweep = some(tmp_path_factory.mktemp("offline"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("WANDB_MODE", "offline")
        said = [wandb(patience=600.0).replay(sweep) for _ in range(2)]
    return sweep, said, runs_in(sweep)


def test_offline_runs_hold_the_parquet_value_by_value(offline):
    sweep, _, runs = offline
    for job in ("aaaa", "bbbb"):
        expected = rows_of(pq.read_table(sweep / job / "metrics.parquet"))
        assert runs[job].rows.keys() == expected.keys()
        for step, values in expected.items():
            (row,) = runs[job].rows[step]
            told = {name for name in row if not name.startswith("_")} - {"step"}
            names = set()
            for name, value in values.items():
                if name == "short":
                    names |= {f"short/{place}" for place in range(3)}
                    assert [row[f"short/{place}"] for place in range(3)] == value
                elif name == "long":
                    names.add(name)
                    assert sum(row[name]["values"]) == np.isfinite(value).sum()
                    assert row[name]["bins"][0] == pytest.approx(np.nanmin(value))
                else:
                    names.add(name)
                    assert same(float(row[name]), value)
            assert told == names


def test_a_run_is_named_by_its_job_and_grouped_by_its_sweep(offline):
    _, _, runs = offline
    assert runs.keys() == {"aaaa", "bbbb", "cccc", "5eeb"}
    done = runs["aaaa"]
    assert done.run.run_group == "5eeb"
    assert done.run.display_name == "seed=0"
    assert done.run.project == "lmech"
    assert set(done.tags) == {"seed", "5eeb"}
    assert done.config["objective"] == "loss"
    assert done.config["dataset"] == {"path": "here"}
    assert done.config["overrides"] == {"seed": 0}


def test_how_a_job_ended_is_told_by_summary_tag_and_exit_code(offline):
    _, _, runs = offline
    assert {job: runs[job].exits for job in runs} == {
        "aaaa": [0],
        "bbbb": [1],
        "cccc": [1],
        "5eeb": [0],
    }
    for job, status in {"aaaa": "done", "bbbb": "diverged", "cccc": "failed"}.items():
        assert runs[job].summary["status"] == status
        assert (status in runs[job].tags) is (status != "done")
    assert runs["bbbb"].summary["nonfinite_at"] == 2
    assert "nonfinite_at" not in runs["aaaa"].summary
    assert runs["cccc"].summary["error"] == "ValueError: no such thing"
    assert not runs["cccc"].rows


def test_the_verdict_is_a_run_of_the_sweeps_id(offline):
    _, _, runs = offline
    verdict = runs["5eeb"]
    assert verdict.run.job_type == "verdict"
    kinds = {
        row[name]["_type"]
        for rows in verdict.rows.values()
        for row in rows
        for name in row
        if isinstance(row[name], dict)
    }
    assert kinds == {"image-file", "table-file"}
    assert verdict.summary["jobs"] == 3


def test_no_file_has_the_key(offline):
    sweep, _, _ = offline
    files = [path for path in sweep.rglob("*") if path.is_file() and path.name != MANIFEST]
    assert len(files) > 10
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert without_secrets({"a": [{"token": 1, "b": 2}]}) == {"a": [{"b": 2}]}


def test_a_second_replay_takes_the_place_of_the_first_and_says_how_to_sync(offline):
    sweep, said, runs = offline
    folders = list((sweep / "wandb").glob("offline-run-*"))
    assert len(folders) == len(runs) == 4
    assert said[0] == said[1] == [f"wandb: offline; wandb sync {sweep}/wandb/offline-run-*"]


def test_without_a_key_wandb_is_offline_and_with_one_or_netrc_online(tmp_path, monkeypatch):
    import wandb as real

    def live():
        real.teardown()  # which remembers what it has read
        return Runs(tmp_path, None, None, 1.0).live

    assert not live()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert live()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not live()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert live()


# ---------------------------------------------------------------------- jobs that are still running


def save(place, tables, until, since=0):
    """A batch's state and part as ``checkpoints`` writes them: rows before a step, of all jobs."""
    place.mkdir(parents=True, exist_ok=True)
    number = len(list(place.glob("part-*")))
    records = []
    for member, own in enumerate(tables.values()):
        for name in own.column_names[1:]:
            kept = own.select(["step", name]).drop_null().to_pylist()
            kept = [row for row in kept if since <= row["step"] < until]
            if kept:
                steps = np.asarray([[row["step"] for row in kept]])
                values = np.asarray([[row[name] for row in kept]])
                valid = np.ones(steps.shape, bool)
                records.append(states.Rows(np.asarray([member]), steps, valid, {name: values}))
    arrays = {}
    for place_of, record in enumerate(records):
        arrays |= states.packed(place_of, record)
    np.savez(states.place(place, number), **arrays)
    ids = [f"whole-{job}" for job in tables]
    head = {"step": until, "parts": [0, number + 1], "ids": ids}
    np.savez(place / states.STATE, head=np.asarray(json.dumps(head)))


class Server:
    """A stand-in for wandb: what a server would hold of each run, whichever process sent it."""

    def __init__(self):
        self.rows, self.started, self.exits, self.summary = {}, Counter(), {}, {}

    def init(self, **what):
        assert what["mode"] == "online"
        assert (what["reinit"], what["resume"]) == ("create_new", "allow")
        name = what["id"]
        rows = self.rows.setdefault(name, {})
        self.started[name] += 1
        first = max(rows, default=-1) + 1

        def log(values, step=None):
            step = max(rows, default=-1) + 1 if step is None else step
            assert step >= max(rows, default=0), "a server drops rows that go back"
            assert step >= first, "these it has"
            rows.setdefault(step, {}).update(values)

        return SimpleNamespace(
            log=log,
            starting_step=first,
            project_url="https://server/x",
            define_metric=lambda *_, **__: None,
            summary=self.summary.setdefault(name, {}),
            tags=(),
            finish=lambda exit_code: self.exits.update({name: exit_code}),
        )


@pytest.fixture
def server(monkeypatch):
    import wandb as real

    found = Server()
    monkeypatch.setattr(real, "init", found.init)
    monkeypatch.setenv("WANDB_MODE", "online")
    return found


def told(rows):
    return {
        step: {name: v for name, v in row.items() if name in ("loss", "sharpness")}
        for step, row in rows.items()
    }


def expected(source):
    return told(rows_of(source))


def test_online_curves_grow_as_the_batch_saves_and_end_as_the_parquet(tmp_path, server):
    tables = {job: table(number) for number, job in enumerate(("aaaa", "bbbb"))}
    sweep = written(tmp_path, {}, others=tables)
    replay, place = Replay(wandb(), sweep), sweep / "batches" / "0"
    replay.tell()
    assert not server.rows
    save(place, tables, until=7)
    replay.tell()
    assert {job: max(rows) for job, rows in server.rows.items()} == {"aaaa": 6, "bbbb": 6}
    save(place, tables, until=12, since=7)
    write_job(sweep / "bbbb", tables["bbbb"])
    replay.tell()
    assert (max(server.rows["aaaa"]), max(server.rows["bbbb"])) == (11, 19)
    write_job(sweep / "aaaa", tables["aaaa"])
    assert replay.conclude() == ["wandb: https://server/x"]
    for job, own in tables.items():
        assert told(server.rows[job]) == expected(own)
    assert server.started == {"aaaa": 1, "bbbb": 1, "5eeb": 1}
    assert set(server.exits.values()) == {0}


def test_a_process_that_was_killed_is_gone_on_from_where_the_server_is(tmp_path, server):
    tables = {"aaaa": table(0)}
    sweep = written(tmp_path, {}, others=tables)
    save(sweep / "batches" / "0", tables, until=9)
    Replay(wandb(), sweep).tell()
    assert max(server.rows["aaaa"]) == 8
    write_job(sweep / "aaaa", tables["aaaa"])
    Replay(wandb(), sweep).conclude()
    assert told(server.rows["aaaa"]) == expected(tables["aaaa"])
    before = json.dumps(server.rows["aaaa"], default=str)
    wandb().replay(sweep)  # and all of it once more: nothing new
    assert json.dumps(server.rows["aaaa"], default=str) == before
    assert server.started["aaaa"] == 3


def test_what_was_cut_off_is_a_failed_run_until_it_goes_on(tmp_path, server):
    tables = {"aaaa": table(0)}
    sweep = written(tmp_path, {}, others=tables)
    save(sweep / "batches" / "0", tables, until=9)
    Replay(wandb(), sweep).conclude()
    assert server.exits["aaaa"] == 1


def test_what_is_known_is_not_told_again_and_what_changed_is(tmp_path, server):
    sweep = some(tmp_path)
    Replay(wandb(), sweep).conclude()
    Replay(wandb(), sweep).conclude()
    assert set(server.started.values()) == {1}
    write_job(sweep / "cccc", table(3))
    Replay(wandb(), sweep).conclude()
    assert server.started == {"aaaa": 1, "bbbb": 1, "cccc": 2, "5eeb": 1}
    assert told(server.rows["cccc"]) == expected(table(3))


@pytest.mark.slow
def test_64_runs_are_open_in_one_process_and_none_has_anothers_rows(tmp_path, monkeypatch):
    tables = {f"{number:04x}": table(number, steps=12) for number in range(64)}
    sweep = written(tmp_path, {}, others=tables)
    real = Runs._opened
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(Runs, "live", property(lambda _: True))

    def opened(self, *what, **more):  # offline, and yet as if it were online
        init = self._wandb.init
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._wandb, "init", lambda **own: init(**{**own, "resume": None}))
            return real(self, *what, **more)

    monkeypatch.setattr(Runs, "_opened", opened)
    replay = Replay(wandb(), sweep)
    save(sweep / "batches" / "0", tables, until=5)
    replay.tell()
    assert len(replay._open) == 64
    import wandb as package

    assert package.run is None
    for job, own in tables.items():
        write_job(sweep / job, own)
    replay.conclude()
    runs = runs_in(sweep)
    for job, own in tables.items():
        rows = {step: row for step, (row,) in runs[job].rows.items()}
        assert told(rows) == expected(own)


def test_in_a_search_of_wandbs_the_run_is_the_agents_and_has_the_objective(
    tmp_path, server, monkeypatch
):
    monkeypatch.setenv("WANDB_SWEEP_ID", "search")
    monkeypatch.setenv("WANDB_RUN_ID", "agents")
    summaries = []
    for number, job in enumerate(("aaaa", "bbbb")):
        own, result = (table(0), {}) if job == "aaaa" else (diverged(), {"status": "diverged"})
        Replay(wandb(), written(tmp_path / job, {job: (own, result)})).conclude()
        assert server.started == {"agents": number + 1}
        summaries.append(server.summary["agents"]["objective"])
        server.rows.clear()
    assert summaries == [table(0)["loss"][-1].as_py(), np.inf]


def test_the_search_of_the_docs_makes_command_lines_that_there_are():
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    text = (Path(__file__).parents[1] / "scripts" / "wandb_sweep.yaml").read_text(encoding="utf-8")
    search = yaml.safe_load(text)
    drawn = {
        name: what["value"] if "value" in what else what.get("values", [what.get("min")])[0]
        for name, what in search["parameters"].items()
    }
    told = {"args": {name: {"value": value} for name, value in drawn.items()}}
    words = create_sweep_command_args(told)["args_no_hyphens"]
    command = create_sweep_command(search["command"])
    assert command[:2] == ["${program}", "${args_no_hyphens}"]
    (job,) = planning.expand([*words, *command[2:]], [])
    assert job.config["objective"] == "test_loss"
    assert job.config["optimizer"]["learning_rate"] == 0.01
    assert set(job.config["logger"]) == {"console", "wandb"}
    assert (search["program"], search["metric"]["name"]) == ("lmech", "objective")


# -------------------------------------------------------------------------------------- TensorBoard


def text(folder, tag):
    ((_, value),) = events(folder)[f"{tag}/text_summary"]
    return value.tensor.string_val[0]


def test_event_files_hold_the_parquet_and_a_second_replay_doubles_nothing(tmp_path):
    sweep = some(tmp_path)
    for _ in range(2):
        assert tensorboard().replay(sweep) == [
            f"tensorboard: tensorboard --logdir {sweep}/tensorboard"
        ]
    folder = sweep / "tensorboard"
    assert {path.name for path in folder.iterdir()} == {
        "aaaa",
        "bbbb",
        "cccc",
        "5eeb",
        "logged.json",
    }
    for job in ("aaaa", "bbbb"):
        found, rows = events(folder / job), rows_of(pq.read_table(sweep / job / "metrics.parquet"))
        for step, row in rows.items():
            for name, value in row.items():
                pieces = (
                    {name: value}
                    if name != "short"
                    else {f"short/{place}": v for place, v in enumerate(value)}
                )
                for tag, number in pieces.items():
                    (own,) = (v for at, v in found[tag] if at == step)
                    if name == "long":
                        assert own.histo.num == np.isfinite(number).sum()
                    else:
                        assert same(own.simple_value, float(np.float32(number)))
        assert len(found["loss"]) == len(rows)
    assert b'"objective": "loss"' in text(folder / "bbbb", "config")
    assert b"diverged" in text(folder / "bbbb", "ending")
    assert b"no such thing" in text(folder / "cccc", "ending")
    assert "_hparams_/experiment" in events(folder / "aaaa")


def test_the_sweeps_own_folder_has_the_figure_as_it_is_and_the_claims(tmp_path):
    sweep = some(tmp_path)
    tensorboard().replay(sweep)
    found = events(sweep / "tensorboard" / "5eeb")
    ((_, value),) = found["figure"]
    assert value.image.encoded_image_string == (sweep / "figure.png").read_bytes()
    assert (value.image.width, value.image.height) == (100, 50)
    row = b"| all is well | 0.5 | [0, 1] | holds | holds |"
    assert row in text(sweep / "tensorboard" / "5eeb", "claims")


@pytest.mark.slow
def test_event_files_grow_as_the_batch_saves(tmp_path):
    tables = {"aaaa": table(0)}
    sweep = written(tmp_path, {}, others=tables)
    replay = Replay(tensorboard(), sweep)
    for since, until in ((0, 7), (7, 12)):
        save(sweep / "batches" / "0", tables, until, since)
        replay.tell()
    late = time.monotonic() + 60
    while time.monotonic() < late:  # another thread writes, every five seconds
        found = events(sweep / "tensorboard" / "aaaa")
        if len(found.get("loss", [])) == 12:
            break
        time.sleep(0.2)
    assert [step for step, _ in found["loss"]] == list(range(12))
    write_job(sweep / "aaaa", tables["aaaa"])
    replay.conclude()
    found = events(sweep / "tensorboard" / "aaaa")
    assert [step for step, _ in found["loss"]] == list(range(20))
    assert [step for step, _ in found["sharpness"]] == [0, 5, 10, 15]


# ------------------------------------------------------------------- beside the training, and after


def test_one_process_at_a_time_tells_a_sweep(tmp_path):
    sweep = some(tmp_path)
    with locking.held(sweep / "tensorboard" / ".lock"):
        with pytest.raises(BlockingIOError, match="another process is at it"):
            tensorboard().replay(sweep)
        assert tensorboard().follow(sweep, lambda _: True) == []
    assert tensorboard().follow(sweep, lambda _: True) != []


def test_a_sweep_that_never_began_leaves_nothing(tmp_path):
    assert tensorboard().follow(tmp_path / "sweep", lambda _: True) == []
    assert list(tmp_path.iterdir()) == []


def failing(_):
    raise OSError(28, "No space left on device")


def slow(_):
    threading.Event().wait(20)


def test_a_sink_that_fails_costs_one_line(tmp_path):
    sweep = some(tmp_path)
    beside = Beside("full", failing, 1.0, 600.0)
    said = r"No space left on device.*lmech log .* does it again"
    with pytest.raises(RuntimeError, match=said), beside(sweep):
        pass


def test_a_sink_that_hangs_is_not_waited_for(tmp_path, capfd):
    sweep = some(tmp_path)
    with Beside("slow", slow, 1.0, 0.1)(sweep):
        pass
    said = capfd.readouterr().out
    assert said.startswith("slow: goes on as process ")
    process = psutil.Process(int(said.split("process ")[1].split()[0]))
    process.kill()
    process.wait(10)


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_training_beside_both_and_an_unreachable_server_costs_one_line(monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    words = [*FAST, "logger=[tensorboard,wandb]", "logger.wandb.patience=2"]
    assert main(words) == 0
    said, wrong = capfd.readouterr()
    assert wrong.count("\n") <= 1
    stopped = "lmech: the logger wandb stopped: " in wrong
    assert stopped or "wandb: goes on as process " in said
    (sweep,) = Path("outputs").glob("*/*")
    (job,) = (path.parent.name for path in sweep.glob("*/result.json"))
    steps = pq.read_table(sweep / job / "metrics.parquet")["step"].to_pylist()
    found = events(sweep / "tensorboard" / job)
    assert sorted({step for step, _ in found["train_loss"]}) == steps
    assert "tensorboard: tensorboard --logdir " in said


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_a_manifest_of_one_unnamed_logger_is_gone_on_with(capsys):
    assert main(["-m", *FAST, "seed=0,1", "logger=none"]) == 0
    (sweep,) = Path("outputs").glob("*/*")
    lines = [json.loads(line) for line in (sweep / MANIFEST).read_text().splitlines()]
    for line in lines:
        line["config"]["logger"] = {"_target_": "lmech.loggers.console.console", "seconds": 10.0}
    (sweep / MANIFEST).write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()
    assert main(["resume", str(sweep), "rerun=all"]) == 0
    said, wrong = capsys.readouterr()
    assert "sweep: 2 done" in said
    assert not wrong
    assert main(["resume", str(sweep), "rerun=all", "logger=none"]) == 0
    assert "sweep: 2 done" not in capsys.readouterr().out


@pytest.mark.slow
def test_what_was_not_chosen_is_not_imported(tmp_path):
    program = (
        "import sys; from lmech.cli import main; code = main(sys.argv[1:]);"
        "assert not {'wandb', 'tensorboardX'} & sys.modules.keys(); sys.exit(code)"
    )
    words = ["plan", *FAST, "logger=[console,tensorboard,wandb]"]
    cache = {"LMECH_CACHE": str(tmp_path / "cache")}  # where every signature is read anew
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path,
        env={**os.environ, **cache, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------------- the command line


def test_log_replays_what_is_there(tmp_path, monkeypatch, capsys):
    sweep = some(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["log", "outputs", "logger=tensorboard"]) == 0
    assert (
        capsys.readouterr().out
        == "tensorboard: tensorboard --logdir outputs/trial/5eeb/tensorboard\n"
    )
    assert (sweep / "tensorboard" / "aaaa").is_dir()


def test_log_goes_on_after_a_sweep_that_it_cannot_tell(tmp_path, capsys):
    first, second = (some(tmp_path / name) for name in "ab")
    (first / "aaaa" / "metrics.parquet").write_text("no table")
    assert main(["log", str(tmp_path), "logger=tensorboard"]) == 1
    said, wrong = capsys.readouterr()
    assert wrong.startswith(f"lmech: tensorboard: {first}: ")
    assert wrong.count("\n") == 1
    assert said == f"tensorboard: tensorboard --logdir {second}/tensorboard\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["logger=console"], "repeats nothing later"),
        (["steps=3"], "steps is fixed by the manifest: only logger"),
        (["logger.console.seconds=1"], "is missing, as in logger=wandb"),
        (["logger=wand"], "did you mean 'wandb'?"),
    ],
)
def test_log_says_what_it_cannot(tmp_path, words, said, capsys):
    assert main(["log", str(some(tmp_path)), *words]) == 2
    assert said in capsys.readouterr().err


def test_loggers_are_chosen_like_observables():
    def chosen(*words):
        return list(config.resolve(config.compose(words))["logger"])

    assert chosen() == ["console"]
    assert chosen("logger=[]") == []
    assert chosen("logger=[console,tensorboard]") == ["console", "tensorboard"]
    assert chosen("logger=wandb", "logger.wandb.project=mine") == ["wandb"]
    assert list(following.named({"_target_": "x.y"})) == ["logger"]
