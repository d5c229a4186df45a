"""TensorBoard's event files of a sweep, a folder a job, and one of the sweep."""

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams

from lmech import formats
from lmech.loggers.replay import Ending, Told, Values, Verdict, entries

FLUSHED = 5
"""Seconds until what a running job has told can be seen."""


class Events:
    """The sink: scalars and histograms by step, the config as text, hyper-parameters, figure."""

    live = True

    def __init__(self, folder: Path) -> None:
        """Nothing written yet."""
        self._folder = folder / "tensorboard"
        self._writers: dict[str, SummaryWriter] = {}
        self._jobs: dict[str, Told] = {}

    def begin(self, job: Told) -> int:
        """An empty folder of the job's: what it held is written again."""
        writer = self._writers[job.id] = self._writer(job.id)
        self._jobs[job.id] = job
        writer.add_text("config", _code(job.config), 0)
        return 0

    def _writer(self, name: str) -> SummaryWriter:
        shutil.rmtree(self._folder / name, ignore_errors=True)
        return SummaryWriter(str(self._folder / name), flush_secs=FLUSHED)

    def row(self, job: str, step: int, values: Values) -> None:
        """Scalars; of long vectors a histogram of what is finite."""
        found, writer = entries(values), self._writers[job]
        scalars = {name: value for name, value in found.items() if isinstance(value, float)}
        told = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        writer.file_writer.add_summary(Summary(value=told), step)  # with NaN, of which others warn
        for name in found.keys() - scalars.keys():
            writer.add_histogram(name, found[name], step)

    def end(self, job: str, ending: Ending) -> None:
        """How it ended, and its hyper-parameters beside its final values."""
        writer, told = self._writers.pop(job), self._jobs.pop(job)
        text = {"status": ending.status, "nonfinite_at": ending.result.get("nonfinite_at")}
        writer.add_text("ending", _code(text | ({"error": ending.reason} if ending.reason else {})))
        swept = {key: _plain(value) for key, value in told.overrides.items()}
        final = ending.result.get("final", {})
        numbers = {name: value for name, value in final.items() if isinstance(value, float)}
        for summary in hparams({**swept, "status": ending.status}, numbers):
            writer.file_writer.add_summary(summary)
        writer.close()

    def verdict(self, verdict: Verdict) -> None:
        """The figure, and the claims as a table."""
        writer = self._writer(verdict.sweep)
        if verdict.figure is not None:
            writer.file_writer.add_summary(_image("figure", verdict.figure.read_bytes()), 0)
        if verdict.claims:
            writer.add_text("claims", claims_text(verdict), 0)
        writer.close()

    def close(self) -> list[str]:
        """Jobs that were cut off keep what they have."""
        for writer in self._writers.values():
            writer.close()
        return [f"tensorboard: tensorboard --logdir {self._folder}"]


def _code(config: Mapping[str, Any]) -> str:
    """Markdown: JSON, as it is."""
    text = json.dumps(config, indent=2, ensure_ascii=False)
    return "\n".join(f"    {line}" for line in text.splitlines())


def _plain(value: Any) -> Any:
    """What TensorBoard takes for a hyper-parameter."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _image(tag: str, png: bytes) -> Summary:
    """A PNG as it is; its size stands at a fixed place of its head."""
    width, height = struct.unpack(">II", png[16:24])
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def claims_text(verdict: Verdict) -> str:
    """The claims as Markdown."""
    heads = ("claim", "measured", "interval", "verdict", "expected")
    rows = [
        (
            claim["claim"],
            f"{formats.number(claim['measured'])} {claim['unit']}".strip(),
            formats.interval(claim["interval"]),
            claim["verdict"],
            claim["expected"],
        )
        for claim in verdict.claims
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ("---",) * len(heads), *rows))
