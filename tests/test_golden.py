"""Golden numbers: the reference problem, and every optimizer preset beside the maths version."""

import json
from pathlib import Path

import numpy as np
import pytest
from problems import column, job, train

from lmech import planning
from lmech.verifying import compare

PRESETS = Path(__file__).parent / "golden_presets.json"
OPTIMIZERS = ("gd", "sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "muon")


def test_loss_gradient_curvature_and_kernel_agree_with_the_reference_to_1e_8():
    rows = compare()
    assert len(rows) == 64
    assert [row.quantity for row in rows if not row.agrees] == []


def test_a_changed_number_is_seen():
    row = compare()[0]
    assert row.agrees
    assert not row._replace(ours=row.ours * (1 + 1e-7)).agrees


def preset_losses():
    """Training loss after 12 steps of each optimizer preset, in float64."""
    losses = {}
    for optimizer in OPTIMIZERS:
        recorder, _ = train(
            [job("precision=float64", f"optimizer={optimizer}", "dataset.train_size=70")]
        )
        losses[optimizer] = column(recorder, 0, "train_loss")[12].item()
    return losses


@pytest.mark.usefixtures("x64")
def test_preset_numbers_change_only_with_the_maths_version():
    """If this fails, either the change is a mistake, or MATHS_VERSION and this file both move.

    To renew: python tests/test_golden.py
    """
    golden = json.loads(PRESETS.read_text())
    assert golden["maths_version"] == planning.MATHS_VERSION
    ours = preset_losses()
    assert ours.keys() == golden["train_loss"].keys()
    for name, value in golden["train_loss"].items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-9, err_msg=name)


if __name__ == "__main__":
    from lmech.numerics.precision import numerics

    with numerics():
        content = {"maths_version": planning.MATHS_VERSION, "train_loss": preset_losses()}
    PRESETS.write_text(json.dumps(content, indent=1) + "\n")
