"""pilot"""

import pandas as pd


def measure(runs):
    rows = []
    for run in runs:
        s = run.column("effective_sharpness")
        rows.append({"job": run.job, **run.overrides, "lr": run.config["optimizer"]["learning_rate"], "s0": s.iloc[0], "s100": s.get(100), "s300": s.get(300), "s600": s.iloc[-1],
                     "cross": min(s.index[s >= 1], default=float("inf")), "loss": run.column("train_loss").iloc[-1]})
    f = pd.DataFrame(rows)
    print(f.drop(columns=["job"]).to_string())
    return f
