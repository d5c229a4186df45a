"""From a config to its model: what is made once for many jobs."""

from problems import job

from lmech import building, modelling


def test_jobs_that_differ_in_the_rate_call_their_factories_once(monkeypatch):
    called = []

    def counting(node, **given):
        called.append(node["_target_"])
        return original(node, **given)

    original = modelling.instantiate
    monkeypatch.setattr(modelling, "instantiate", counting)
    for memo in ("_scales", "_declared", "_rules"):
        monkeypatch.setattr(modelling, memo, {})
    words = ("parametrization=mup", "optimizer=adam", "model.width=32")
    configs = [job(*words, f"optimizer.learning_rate={r}") for r in (0.1, 0.2, 0.3)]
    scales = modelling.scales_of(configs, building.load_data(configs[0]))
    assert called.count("lmech.parametrization.abc") == 1
    assert called.count("lmech.models.mlp.mlp") <= 3 + 3  # its shapes and spreads at three widths
    assert scales[0].learning_rate == scales[2].learning_rate
    assert scales[0] is not scales[2]


def test_jobs_that_differ_in_the_parametrization_do_not_share_one():
    words = ("parametrization=mup", "optimizer=adam", "model.width=128")
    configs = [job(*words, f"parametrization.base_width={n}") for n in (32, 64)]
    one, other = modelling.scales_of(configs, building.load_data(configs[0]))
    assert one.learning_rate["hidden_2"]["kernel"] == 32 / 128
    assert other.learning_rate["hidden_2"]["kernel"] == 64 / 128
