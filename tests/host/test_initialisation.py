"""How the model is built is chosen apart from the format, and the server says which it was."""

from __future__ import annotations

from labkit.stack import experiment

STACKS = {
    "no-image,init=meta,weights=pickle": "meta",
    "no-image,init=random,weights=safetensors": "random",
}


def test_initialisation_and_format_are_chosen_apart():
    run = experiment(list(STACKS), preset="tiny", scenario="hot-node", blocks=1)
    for arm, init in STACKS.items():
        (trial,) = run.of_arm(arm, only_ok=False)
        assert trial.ok, trial.error
        found = {e["layer"]: e for e in trial.evidence}
        assert found["init"]["facts"]["init"] == init and found["weights"]["engaged"]
        assert run.arm_named(arm)["stack"]["init"] == init
