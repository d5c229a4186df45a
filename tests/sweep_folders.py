"""Sweeps as files, without a training: what a report reads."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmech.disk import write_json, write_yaml

RECORD = {
    "lmech": "0.1.0",
    "commit": "c0ffee",
    "dirty": False,
    "packages": {"jax": "0.10"},
    "device": "cpu: cpu",
    "platform": "Linux",
    "xla_flags": "",
}
CONFIG = {
    "model": {"_target_": "lmech.models.mlp.mlp", "width": 8, "bias": False, "norm_group": None},
    "dataset": {"_target_": "lmech.datasets.digits.digits", "train_size": 1500},
    "optimizer": {"_target_": "optax.sgd", "learning_rate": 0.1},
    "stop": {"train_loss": None},
    "steps": 300,
    "batch_size": None,
    "seed": 0,
    "observables": {"train_loss": {"every": 1}, "sharpness": {"every": 25}},
}


def config(seed, rate):
    return {**CONFIG, "seed": seed, "optimizer": {**CONFIG["optimizer"], "learning_rate": rate}}


def metrics(seed, rate, steps=300):
    """A loss with a spike, and at every 25th step a sharpness that climbs to 2/η."""
    at = np.arange(steps + 1)
    loss = np.exp(-at / 100) * (1 + 0.01 * seed) + 0.001 * (at % 2)
    loss[137] = 3.5
    sharpness = 2 / rate * np.minimum(1, 0.3 + at / 100)
    return pa.table(
        {
            "step": at,
            "sharpness": pa.array(sharpness, mask=at % 25 > 0),
            "spectrum": pa.array([[1.0, 2.0]] * len(at)),
            "train_accuracy": np.minimum(1, at / 200),
            "train_loss": loss,
        }
    )


def write(folder, experiment=None, title="a title", jobs=None, claims=()):
    """A finished sweep of two rates and two seeds, at ``folder``."""
    jobs = jobs or [(seed, rate) for seed in (0, 1) for rate in (0.1, 0.4)]
    entries = []
    for seed, rate in jobs:
        job = f"job{seed}{str(rate).replace('.', '')}"
        place = folder / job
        place.mkdir(parents=True)
        swept = {"seed": seed, "optimizer.learning_rate": rate}
        entries.append({"id": job, "overrides": swept, "config": config(seed, rate)})
        table = metrics(seed, rate)
        pq.write_table(table, place / "metrics.parquet")
        write_yaml(place / "config.yaml", config(seed, rate))
        final = {"train_loss": table["train_loss"][-1].as_py(), "sharpness": 2 / rate}
        result = {"status": "done", "steps": 300, "final": final, "provenance": RECORD}
        write_json(place / "result.json", result)
    rewrite(folder, entries)
    scale = "default" if experiment else None
    asked = {"command": "lmech reproduce it", "title": title, "experiment": experiment}
    write_json(folder / "request.json", {**asked, "scale": scale})
    seconds = {"wall": 2.0, "compile": 1.0, "run": 1.0}
    write_json(
        folder / "summary.json", {"compilations": 1, "seconds": seconds, "provenance": RECORD}
    )
    if claims:
        write_json(folder / "claims.json", list(claims))
    return folder


def rewrite(folder, entries):
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / "manifest.jsonl").write_text(text, encoding="utf-8")


def entries(folder):
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


CLAIM = {
    "claim": "it holds",
    "quantity": "q",
    "measured": 1.0,
    "predicted": 1.0,
    "interval": [0.5, None],
    "verdict": "holds",
    "expected": "holds",
    "unit": "2/η",
    "seeds": [0, 1],
    "source": "theory",
    "jobs": ["job001", "job101"],
    "where": {},
    "aggregate": "every",
    "values": [0.9, 1.1],
}
