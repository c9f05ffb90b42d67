"""Ablation, prediction, claims and search speak only of what records hold."""

from __future__ import annotations

import pytest

from labkit.core import host
from labkit.core.records import Run, Trial
from labkit.errors import BadInput
from labkit.stack.ablate import arms, candidates, distinct, effects, predict
from labkit.stack.claims import ROWS, Row, claims, figures, verdict
from labkit.stack.compose import NAMED, Stack
from labkit.stack.search import combined
from labkit.technique import Claim

NAIVE = {"image": "full-pull", "process": "process", "weights": "pickle"}


def run_of(
    arm_phases: dict[str, tuple[dict[str, str], dict[str, float]]],
    blocks: int = 5,
    noise: float = 0.01,
) -> Run:
    trials = []
    for block in range(blocks):
        for name, (_, phases) in arm_phases.items():
            scale = 1 + noise * (block - blocks // 2)
            scaled = {p: s * scale for p, s in phases.items()}
            trials.append(
                Trial(
                    name,
                    block,
                    0,
                    total_s=sum(scaled.values()),
                    phases=scaled,
                    unaccounted_s=0.0,
                    cache={"state": "cold"},
                )
            )
    return Run(
        "x",
        "2026-01-01",
        {"id": "h"},
        {
            "arms": [
                {"name": n, "stack": s, "scenario": "fresh-node", "link": "1gbit"}
                for n, (s, _) in arm_phases.items()
            ],
            "blocks": blocks,
        },
        trials=tuple(trials),
    )


RUN = run_of(
    {
        "naive": (
            NAIVE,
            {"pull": 4, "unpack": 4, "import": 2, "build": 1, "load": 3, "first_token": 0.1},
        ),
        "estargz-lazy": (
            {**NAIVE, "image": "estargz-lazy"},
            {"mount": 0.4, "import": 4, "build": 1, "load": 3, "first_token": 0.1},
        ),
        "safetensors": (
            {**NAIVE, "weights": "safetensors"},
            {"pull": 4, "unpack": 4, "import": 2, "build": 0, "load": 1, "first_token": 0.1},
        ),
        "both": (
            {**NAIVE, "image": "estargz-lazy", "weights": "safetensors"},
            {"mount": 0.4, "import": 4, "build": 0, "load": 1, "first_token": 0.1},
        ),
    }
)


def test_on_a_fresh_node_nothing_that_uses_the_hosts_own_environment_is_compared():
    fresh, missing = candidates(host.card(), scenario="fresh-node")
    warm, _ = candidates(host.card(), scenario="warm-node")
    assert "zygote" not in fresh and "zygote" in warm
    assert "on a fresh node nothing of the stack is there" in missing["criu-process"]
    assert not {"criu-process", "compile-cache"} & set(fresh)


def test_the_ladder_ends_on_one_snapshot():
    rungs = [s.name for s in arms(["ladder"], ["safetensors", "criu-process", "criu-container"])]
    assert rungs == ["naive", "ladder: safetensors", "ladder: host-env + criu-process"]
    assert (
        arms(["ladder"], ["safetensors", "criu-container"])[-1].layers["snapshot"]
        == "criu-container"
    )


def test_a_container_snapshot_on_another_image_is_another_arm():
    made = arms(["add-one", "ladder"], ["estargz-lazy", "labkit-streamer", "criu-container"])
    assert [(s.layers["image"], s.name) for s in made if s.layers.get("snapshot")] == [
        ("full-pull", "criu-container"),
        ("estargz-lazy", "ladder: estargz-lazy + criu-container"),
    ]


def test_the_search_combines_only_what_goes_together():
    layers = {
        "naive": {},
        "overlap": {"weights": "overlap"},
        "labkit-streamer": {"weights": "labkit-streamer"},
        "zygote": {"image": "host-env", "process": "zygote"},
        "criu-container": {"process": "runc", "snapshot": "criu-container"},
        "criu-process": {"image": "host-env", "process": "process", "snapshot": "criu-process"},
    }
    seconds = {
        "naive": 3.4,
        "overlap": 2.1,
        "labkit-streamer": 2.2,
        "zygote": 1.3,
        "criu-container": 0.7,
        "criu-process": 0.8,
    }
    run = run_of({name: ({**NAIVE, **layers[name]}, {"load": seconds[name]}) for name in layers})
    made = {s.name: s.layers for s in combined(run, [n for n in layers if n != "naive"])}
    assert set(made) == {
        "criu-container",
        "zygote + overlap",
        "zygote + labkit-streamer",
        "criu-process",
    }
    assert (
        made["criu-container"]["image"] == "full-pull"
        and made["criu-process"]["image"] == "host-env"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "3",
        '{"host": 1}',
        '{"host": "HERE"}',
        '{"host": "HERE", "layers": ["x"]}',
        '{"host": "HERE", "layers": {"image": 3}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_result_of_a_search_is_no_result(workspace, text):
    from labkit.core import host
    from labkit.errors import BadInput
    from labkit.stack import best_here

    best_here._saved(workspace, "warm-node", "loopback", "tiny").write_text(
        text.replace("HERE", host.card()["id"])
    )
    with pytest.raises(BadInput, match="best-here is not known"):
        best_here.best_here(workspace, "warm-node", "loopback", "tiny")


def test_what_is_unclear_alone_is_tried_beside_the_others():
    layers = {
        "naive": {},
        "estargz-lazy": {"image": "estargz-lazy"},
        "safetensors": {"weights": "safetensors"},
        "overlap": {"weights": "overlap"},
        "tensorizer": {"weights": "tensorizer"},
    }
    seconds = {
        "naive": 13.0,
        "estargz-lazy": 5.8,
        "safetensors": 12.6,
        "overlap": 13.6,
        "tensorizer": 18.0,
    }
    run = run_of({name: ({**NAIVE, **layers[name]}, {"load": seconds[name]}) for name in layers})
    made = {s.name for s in combined(run, [n for n in layers if n != "naive"])}
    assert "estargz-lazy + overlap" in made
    assert "estargz-lazy + tensorizer" not in made, "a clear loss alone is no candidate"


@pytest.mark.parametrize("scenario", ["warm-node", "hot-node"])
def test_what_only_pulls_is_no_candidate_where_nothing_is_pulled(scenario, monkeypatch):
    from labkit.technique import YES, techniques

    for each in techniques():
        monkeypatch.setattr(each, "available", lambda host: YES, raising=False)
    names, missing = candidates(host.card(), scenario=scenario)
    assert (
        not {"containerd-pull", "containerd-stargz"} & set(names)
        and scenario in missing["containerd-pull"]
    )


def test_effects_are_paired_and_signed():
    by_arm = {e.arm: e for e in effects(RUN)}
    assert by_arm["estargz-lazy"].ratio["median"] == pytest.approx(8.5 / 14.1, rel=1e-6)
    assert by_arm["estargz-lazy"].saved_s == pytest.approx(5.6, rel=1e-6)
    assert by_arm["naive"].ratio["median"] == 1


def test_the_sum_of_gains_and_the_critical_path_are_set_against_the_measured_arm():
    found = predict(RUN, "both")
    assert found.sum_s == pytest.approx(14.1 - 5.6 - 3.0, rel=1e-6)
    assert found.path_s == pytest.approx(5.5, rel=1e-6)
    assert found.measured_s == pytest.approx(5.5, rel=1e-6)


def test_the_critical_path_of_a_restore_pulls_as_the_image_technique_does():
    lazy, dump = {**NAIVE, "image": "estargz-lazy"}, {"snapshot": "criu-container"}
    found = predict(
        run_of(
            {
                "naive": (NAIVE, {"pull": 4, "unpack": 2, "import": 3, "load": 2}),
                "estargz-lazy": (lazy, {"mount": 0.1, "import": 4, "load": 2}),
                "criu-container": ({**NAIVE, **dump}, {"pull": 4, "unpack": 2, "restore": 1}),
                "both": ({**lazy, **dump}, {"mount": 0.1, "restore": 1.5}),
            }
        ),
        "both",
    )
    assert found and found.path_s == pytest.approx(1.1)


def test_an_arm_whose_parts_were_not_measured_alone_has_no_prediction():
    assert (
        predict(
            run_of(
                {"naive": (NAIVE, {"load": 1}), "new": ({**NAIVE, "weights": "gguf"}, {"load": 2})}
            ),
            "new",
        )
        is None
    )


def test_a_failed_arm_is_kept_with_its_reason():
    broken = Trial("gguf", 0, 0, outcome="crashed", error={"what": "no such file"})
    run = Run(
        "x",
        "",
        {},
        {"arms": [*RUN.experiment["arms"], {"name": "gguf", "stack": {}}], "blocks": 5},
        trials=(*RUN.trials, broken),
    )
    assert next(e for e in effects(run) if e.arm == "gguf").missing == "no such file"


@pytest.mark.parametrize(
    ("snapshot", "measured"), [("criu-container", []), ("of-another-package", ["safetensors"])]
)
def test_a_loader_under_a_snapshot_is_no_claim_about_loading(snapshot, measured):
    """And a record made with another package's technique is read where that is not installed."""
    stacks = {"naive": NAIVE, "safetensors": {**NAIVE, "weights": "safetensors"}}
    run = run_of({n: ({**s, "snapshot": snapshot}, {"load": 2}) for n, s in stacks.items()})
    assert [r.technique for r in claims([run]) if r.technique] == measured


def test_claims_are_generated_from_records_and_unmeasured_rows_are_kept():
    rows = claims([RUN])
    assert {r.label for r in rows} == {r.label for r in ROWS}
    lazy = next(r for r in rows if r.technique == "estargz-lazy")
    assert lazy.ratio["median"] == pytest.approx(0.05)
    assert lazy.verdict == "larger"
    assert next(r for r in rows if r.label.startswith("CUDA")).verdict == "not on this host"


def _loaded(device: str) -> Run:
    """A streamed start against the one without an image, five blocks, on a host with an A100."""
    arms = [
        {
            "name": n,
            "scenario": "warm-node",
            "link": "loopback",
            "stack": {"image": "host-env", "process": "process", "weights": w},
        }
        for n, w in (("no-image", "pickle"), ("streamed", "labkit-streamer"))
    ]
    trials = tuple(
        Trial(n, b, 0, total_s=2 * s, phases={"load": s}, cache={"state": "cold"})
        for b in range(5)
        for n, s in (("no-image", 4.0), ("streamed", 2.0))
    )
    return Run(
        "x",
        "now",
        {"id": "h", "gpus": [{"name": "NVIDIA A100"}]},
        {"arms": arms, "preset": "1b", "conditions": {"preset": "1b", "device": device}},
        trials=trials,
    )


def test_a_claim_about_a_gpu_is_judged_of_a_run_on_one_and_on_a_cpu_it_is_other_hardware():
    (on_gpu,) = (r for r in claims([_loaded("cuda")]) if r.technique)
    assert (
        (on_gpu.verdict, on_gpu.ratio["median"]) == ("holds", 0.5)
        and "on NVIDIA A100" in on_gpu.setup
        and "no image" in on_gpu.setup
        and "claimed for" not in on_gpu.setup
    )
    (on_cpu,) = (r for r in claims([_loaded("cpu")]) if r.technique)
    assert (on_cpu.verdict, on_cpu.ratio["median"]) == ("other hardware", 0.5)
    h100 = _loaded("cuda")
    h100.host["gpus"] = [{"name": "NVIDIA H100"}]
    assert "claimed for A100" in next(r for r in claims([h100]) if r.technique).setup


def test_rows_of_gpu_trials_stand_in_their_article_s_row():
    article = ROWS[-1]
    more = Row(
        article.claim,
        article.layer,
        article.label,
        "cuda-checkpoint + criu",
        {"median": 0.5, "low": 0.5, "high": 0.5, "significant": False},
        verdict="not significant",
    )
    rows = claims([RUN], [more])
    assert [r.technique for r in rows if r.label == article.label] == [
        "cuda-checkpoint + criu"
    ] and rows[-1].published


@pytest.mark.parametrize(
    "ratio, expected",
    [
        ({"median": 0.3, "low": 0.25, "high": 0.35, "significant": True}, "holds"),
        ({"median": 0.05, "low": 0.04, "high": 0.06, "significant": True}, "larger"),
        ({"median": 0.8, "low": 0.7, "high": 0.9, "significant": True}, "smaller"),
        ({"median": 1.3, "low": 1.2, "high": 1.4, "significant": True}, "slower here"),
        ({"median": 0.9, "low": 0.7, "high": 1.1, "significant": False}, "not significant"),
    ],
)
def test_a_verdict_compares_the_interval_with_the_claimed_range(ratio, expected):
    assert verdict(ratio, Claim("", "", 0.2, 0.4)) == expected


def test_published_figures_name_setup_and_source():
    assert all(f["setup"] and f["source"] and f["figure"] for f in figures())
    assert {f["row"] for f in figures()} <= {r.label for r in ROWS}


def test_named_stacks_parse_and_unknown_ones_list_the_choices():
    assert Stack.parse("naive").layers == NAMED["naive"]
    for bad in ("nonsense", "image", "colour=blue", ""):
        with pytest.raises(BadInput) as caught:
            Stack.parse(bad)
        assert "naive" in caught.value.fix


def test_a_technique_on_the_wrong_layer_is_refused_with_the_right_one():
    with pytest.raises(BadInput) as caught:
        Stack.parse("image=pickle")
    assert "weights=pickle" in caught.value.fix


def test_an_image_runtime_without_an_image_is_refused():
    with pytest.raises(BadInput):
        Stack.parse("image=host-env,process=runc").refuse_nonsense()


def test_no_combination_is_measured_twice():
    stacks = [
        Stack("a", NAIVE),
        Stack("b", dict(NAIVE)),
        Stack("c", {**NAIVE, "weights": "safetensors"}),
    ]
    assert [s.name for s in distinct(stacks)] == ["a", "c"]


def test_an_unknown_kind_of_ablation_is_refused():
    with pytest.raises(BadInput):
        arms(["all"], [])


def test_format_and_initialisation_are_arms_of_their_own():
    made = {s.name: s for s in arms(["add-one"], ["meta", "safetensors"])}
    assert list(made) == ["naive", "meta", "safetensors", "init=random,weights=safetensors"]
    assert {n: (s.layers["weights"], s.initialisation()) for n, s in made.items()} == {
        "naive": ("pickle", "random"),
        "meta": ("pickle", "meta"),
        "safetensors": ("safetensors", "meta"),
        "init=random,weights=safetensors": ("safetensors", "random"),
    }


def test_naming_what_the_loader_does_anyway_is_no_other_arm():
    texts = ("naive", "init=random,weights=pickle", "weights=safetensors")
    stacks = [Stack.parse(t) for t in (*texts, "init=meta,weights=safetensors")]
    assert [s.name for s in distinct(stacks)] == ["naive", "weights=safetensors"]


def test_what_naive_does_is_no_candidate():
    found, _ = candidates(host.card(), layers=("init",))
    assert found == ["meta"]


def test_the_build_phase_is_the_initialisations_where_one_was_chosen():
    build = {"naive": 3, "meta": 0, "safetensors": 0, "both": 0}
    load = {"naive": 4, "meta": 4, "safetensors": 1, "both": 1}
    layers = {
        "naive": {},
        "meta": {"init": "meta"},
        "safetensors": {"weights": "safetensors"},
        "both": {"init": "meta", "weights": "safetensors"},
    }
    run = run_of(
        {n: ({**NAIVE, **layers[n]}, {"build": build[n], "load": load[n]}) for n in layers}
    )
    found = predict(run, "both")
    assert found and found.path_s == pytest.approx(1) and found.sum_s < found.path_s
