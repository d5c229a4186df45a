"""Train one batch, from where it stands, and write its jobs' files as they end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lmech import building, checkpoints, journal, planning, results, states, together
from lmech.arranging import Batch
from lmech.checkpoints import Checkpoint
from lmech.disk import write_weights
from lmech.engine import Begun, End, Snapshot
from lmech.lanes import Record, Saved
from lmech.numerics import trees
from lmech.numerics.precision import numerics
from lmech.recorder import Recorder
from lmech.stopping import Due


class Run(NamedTuple):
    """What the batches of one sweep share."""

    target: Path
    record: dict[str, Any]
    """Machine and versions."""
    due: Due

    def place(self, batch: Batch) -> Path:
        """The batch's folder while it runs."""
        return self.target / "batches" / batch.name


def kept_state(run: Run, batch: Batch, setup: building.Setup) -> Checkpoint | None:
    """The last state on disk in the batch's folder."""
    if not (run.place(batch) / states.STATE).is_file():
        return None
    with numerics():
        return checkpoints.read(run.place(batch), setup.state_shapes())


def built(batch: Batch) -> building.Setup:
    """What the engine takes for a batch, of whichever jobs of its program it is."""
    with numerics():
        return building.build([job.config for job in batch.jobs], batch.program)


def _begun(
    run: Run, batch: Batch, setup: building.Setup, before: Checkpoint | None
) -> Checkpoint | None:
    """Where the batch goes on from: its own last state, or what it was cut out of; None: step 0."""
    ids = [planning.whole_id(job) for job in batch.jobs]
    for kept in (kept_state(run, batch, setup), before):
        if kept is not None and set(ids) <= set(kept.ids):
            devices, there = batch.program.devices, len(kept.saved.members)
            asked = -(-batch.execution["lanes"] // devices) * devices
            if ids == kept.ids and asked >= there and there % devices == 0:
                return kept
            members = [kept.ids.index(i) for i in ids]
            return checkpoints.of_members(kept, members, min(there, asked), devices)
    return None


def run_batch(
    run: Run,
    batch: Batch,
    show: Callable[..., None],
    before: Checkpoint | None,
    statuses: dict[str, str],
) -> None:
    """Train a batch and write its jobs' files as they end, their ``statuses`` with them."""
    setup = built(batch)
    begun = _begun(run, batch, setup, before)
    names = [job.id for job in batch.jobs]
    ids = [planning.whole_id(job) for job in batch.jobs]
    recorder, fresh = (
        Recorder(len(batch.jobs)),
        list(begun.records if begun and not begun.parts else []),
    )
    for old in begun.records if begun else []:
        recorder.add(old)
    record = {**batch.execution, **_resumption(begun, batch.execution)}
    parts, saved = (begun.parts, begun.saved) if begun else (range(0), None)
    with numerics(batch.jobs[0].config["precision"]["matmul"]):
        for event in together.train(
            [job.config for job in batch.jobs],
            setup,
            lanes=batch.execution["lanes"],
            saved=saved,
            save=run.due,
            last=run.due.last,
            snapshots={step for job in batch.jobs for step in job.config["snapshots"]},
        ):
            match event:
                case Begun():
                    show(names, event.step, recorder.last)
                case Record():
                    recorder.add(event)
                    fresh.append(event)
                    show(names, int(event.steps.max(initial=0)), recorder.last)
                case Saved():
                    parts = checkpoints.write(run.place(batch), event, fresh, parts, ids, record)
                    fresh = []
                    journal.write(run.place(batch), f"saved at step {event.step}")
                    run.due.saved(event.step)
                case Snapshot():
                    _write_snapshot(run, batch, event)
                case End():
                    statuses |= _write_ended(run, batch, recorder, event, record)


def _write_snapshot(run: Run, batch: Batch, snapshot: Snapshot) -> None:
    """Keep the weights of the jobs that asked for this step's."""
    for place, member in enumerate(snapshot.members):
        job = batch.jobs[member]
        if snapshot.step in job.config["snapshots"]:
            weights = trees.named_leaves(trees.take(snapshot.params, place))
            write_weights(run.target / job.id / "weights" / f"{snapshot.step}.npz", weights)


def _write_ended(
    run: Run, batch: Batch, recorder: Recorder, end: End, record: dict[str, Any]
) -> dict[str, str]:
    """The files of the jobs that are through; their statuses."""
    statuses = {}
    for place, member in enumerate(end.members):
        job = batch.jobs[member]
        own = end._replace(
            params=trees.take(end.params, place), step=end.step[place], finite=end.finite[place]
        )
        statuses[job.id] = results.write_job(
            run.target / job.id, job, recorder.table(member), own, record
        )
    return statuses


def _resumption(kept: Checkpoint | None, record: dict[str, Any]) -> dict[str, Any]:
    """What to say of a run that went on under another execution record than it began under.

    The last bits may differ from there on; under the same record there is nothing to say.
    """
    if kept is None:
        return {}
    then = dict(kept.execution)
    before = then.pop("resumed", None)
    changed = {k: [then.get(k), now] for k, now in record.items() if then.get(k) != now}
    if not changed:
        return {"resumed": before} if before else {}
    print(f"lmech: goes on from step {kept.saved.step} with another {', '.join(changed)}")
    step = before["step"] if before else kept.saved.step
    return {"resumed": {"step": step, "changed": {**(before or {}).get("changed", {}), **changed}}}
