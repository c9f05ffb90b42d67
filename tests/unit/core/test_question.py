"""Trials are compared, pooled, resumed and ranked only where everything chosen was the same; what
is not told is said."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace

import pytest

from labkit.byo.own_server import OwnServer
from labkit.byo.trials import OwnOptions
from labkit.byo.trials import run as run_own
from labkit.cli import main
from labkit.cli.compare import between
from labkit.cli.ranking import rank
from labkit.core import host, question, records
from labkit.core.records import Run, Trial
from labkit.errors import BadInput, IncomparableRecords
from labkit.lessons import baseline
from labkit.stack import experiment
from labkit.stack.claims import claims
from labkit.stack.compose import Stack
from labkit.stack.spec import Experiment

STACK = "no-image"


def described(**options) -> dict:
    return Experiment(
        [Stack.parse(STACK)], **{"preset": "tiny", "scenario": "warm-node", "blocks": 5, **options}
    ).described()


def run_of(
    host_id: str = "h1", seconds: float = 1.0, n: int = 5, state: str = "cold", **options
) -> Run:
    trials = tuple(
        Trial(
            STACK,
            b,
            0,
            total_s=seconds + b / 100,
            phases={"load": seconds},
            unaccounted_s=0.0,
            cache={"state": state},
        )
        for b in range(n)
    )
    return Run(
        "id", "now", {"id": host_id, "title": f"host {host_id}"}, described(**options), {}, trials
    )


def old(run: Run) -> Run:
    """As it was written before conditions were."""
    return replace(run, experiment={k: v for k, v in run.experiment.items() if k != "conditions"})


@pytest.fixture
def models(tmp_path):
    """Two model directories that differ in one weight, and a copy of the first."""
    for name, weight in (("a", b"1"), ("b", b"2"), ("copy-of-a", b"1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(bytes(400_000) + weight)
    return tmp_path


#: Whatever can be chosen, chosen otherwise, and the field that has to be named.
OTHERWISE = [
    ({"link": "1gbit"}, "link: loopback against 1gbit"),
    ({"scenario": "hot-node"}, "scenario: warm-node against hot-node"),
    ({"preset": "small"}, "preset: tiny against small"),
    ({"timeout_s": 5.0}, "timeout_s: 300.0 against 5.0"),
    ({"device": "cuda"}, "device: cpu against cuda"),
    ({"max_tokens": 1}, "max_tokens: 8 against 1"),
    ({"store": "s3://bucket/x"}, "store: none against s3://bucket/x"),
    ({"at_t0": "curl x"}, "at_t0"),
    ({"instrument": False}, "instrument: True against False"),
]


@pytest.mark.parametrize(
    ("otherwise", "named"), OTHERWISE, ids=lambda x: next(iter(x)) if isinstance(x, dict) else ""
)
def test_whatever_is_chosen_otherwise_is_named_and_refused_by_all_who_set_records_beside_each_other(
    otherwise, named, tmp_path
):
    one, other = run_of(), run_of(seconds=2.0, **otherwise)
    with pytest.raises(IncomparableRecords) as caught:
        between(one, other)
    assert named in caught.value.what
    assert len(rank([one, other])) == 2
    with pytest.raises(IncomparableRecords, match="nothing to compare"):
        baseline.judge([one], [other])
    with pytest.raises(BadInput) as mixed:
        question.refuse_mixing(one, replace(other, trials=()), "x.json")
    assert named in mixed.value.what


@pytest.mark.parametrize(
    ("otherwise", "named"),
    [o for o in OTHERWISE if "store" not in o[0]],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_record_is_not_resumed_under_another_option_and_nothing_is_prepared(
    otherwise, named, workspace
):
    here = host.card()
    before = replace(run_of(), host=here, experiment=described())
    before = replace(
        before, experiment={**before.experiment, "arms": [{**before.experiment["arms"][0]}]}
    )
    path = records.write(before, workspace.runs / "r.json")
    written = path.read_bytes()
    with pytest.raises(BadInput, match="holds another experiment") as caught:
        experiment(
            [STACK],
            workspace=workspace,
            out=path,
            resume=True,
            **{"preset": "tiny", "scenario": "warm-node", **otherwise},
        )
    assert (
        named in caught.value.what
        and path.read_bytes() == written
        and not list(workspace.models.iterdir())
    )


@pytest.mark.parametrize(
    "change",
    [
        {"stack": {"weights": "safetensors"}},
        {"seed": 3},
        {"torch": "1.0"},
        {"host": "elsewhere"},
        {"image_digest": "sha256:other"},
    ],
)
def test_trials_of_another_stack_order_library_host_or_image_are_not_mixed_into_a_record(change):
    imaged = {
        **run_of().experiment["arms"][0],
        "stack": {"image": "full-pull", "process": "runc", "weights": "pickle"},
    }
    before = replace(
        run_of(),
        experiment={
            **run_of().experiment,
            "conditions": {**run_of().experiment["conditions"], "image_digest": "sha256:one"},
            "arms": [imaged],
        },
        host={"id": "h1", "torch": "2.0"},
    )
    now = replace(before, trials=())
    if "stack" in change:
        now = replace(
            now, experiment={**now.experiment, "arms": [{**now.experiment["arms"][0], **change}]}
        )
    elif "seed" in change:
        now = replace(now, experiment={**now.experiment, **change})
    elif "image_digest" in change:
        now = replace(
            now,
            experiment={**now.experiment, "conditions": {**now.experiment["conditions"], **change}},
        )
    else:
        now = replace(
            now, host={**now.host, **({"id": change["host"]} if "host" in change else change)}
        )
    question.refuse_mixing(before, replace(before, trials=()), "x")
    with pytest.raises(BadInput, match="holds another experiment"):
        question.refuse_mixing(before, now, "x")


def test_what_an_older_record_lacks_is_reported_when_compared_and_refused_when_resumed(
    tmp_path, capsys
):
    one, other = old(run_of()), run_of(seconds=1.1)
    unknown = question.comparable(one, other)
    assert {"timeout_s", "device", "environment"} <= set(unknown) and not {
        "preset",
        "link",
        "scenario",
        "store",
        "image",
    } & set(unknown)
    assert question.comparable(run_of(), run_of(seconds=2.0)) == ()
    paths = [str(records.write(r, tmp_path / f"{i}.json")) for i, r in enumerate((one, other))]
    assert main(["compare", *paths]) == 0
    said = capsys.readouterr()
    assert (
        "not known to be the same: " in said.err
        and "timeout_s" in json.loads(said.out.splitlines()[-1])["unknown"]
    )
    assert (
        "not known to be the same" in baseline.judge([one], [other]).visible[0]
        and "not known" not in baseline.judge([run_of()], [other]).visible[0]
    )
    with pytest.raises(BadInput, match="does not tell its .*timeout_s"):
        question.refuse_mixing(one, replace(other, trials=()), "x")


def test_a_baseline_that_could_be_either_of_two_older_questions_is_compared_with_neither():
    vague = old(run_of())
    assert baseline.judge([vague], [run_of()]).visible
    also_vague = replace(vague, experiment={**vague.experiment, "conditions": {"timeout_s": 300.0}})
    with pytest.raises(IncomparableRecords, match="nothing to compare"):
        baseline.judge([vague, also_vague], [run_of()])


def test_the_same_model_in_another_place_is_the_same_and_another_in_its_place_is_not(models):
    a, b, copy = (run_of(model_dir=str(models / name)) for name in ("a", "b", "copy-of-a"))
    assert question.comparable(a, copy) == ()
    with pytest.raises(IncomparableRecords, match="model_identity"):
        question.comparable(a, b)
    (models / "a" / "model.safetensors").write_bytes(bytes(200_000) + b"3" + bytes(200_000))
    with pytest.raises(IncomparableRecords, match="model_identity"):
        question.comparable(copy, run_of(model_dir=str(models / "a")))


def test_another_setting_in_the_environment_is_another_question_and_no_secret_is_written_down(
    monkeypatch,
):
    before = run_of()
    for name, value in (
        ("RUNAI_STREAMER_CONCURRENCY", "32"),
        ("VLLM_API_KEY", "hidden"),
        ("TRANSFORMERS_TOKEN", "hidden"),
        ("AWS_SECRET_ACCESS_KEY", "hidden"),
        ("AWS_ENDPOINT_URL", "http://me:hidden@s3.local"),
        ("HOME_OF", "x"),
    ):
        monkeypatch.setenv(name, value)
    after = run_of()
    assert "hidden" not in json.dumps(after.experiment) and "HOME_OF" not in json.dumps(
        after.experiment
    )
    with pytest.raises(
        IncomparableRecords, match="environment: .*RUNAI_STREAMER_CONCURRENCY not set against 32"
    ):
        between(before, after)


def test_what_image_other_arms_start_from_is_no_matter_to_an_arm_without_one():
    def beside(**options):
        stacks = [
            Stack.parse(STACK),
            Stack("naive", {"image": "full-pull", "process": "runc", "weights": "pickle"}),
        ]
        run = replace(
            run_of(),
            experiment=Experiment(
                stacks, preset="tiny", scenario="warm-node", **options
            ).described(),
        )
        return replace(run, trials=(*run.trials, *(replace(t, arm="naive") for t in run.trials)))

    assert question.comparable(run_of(), beside(image_extra_bytes=7)) == ()
    assert not question.not_from_one_start(beside(image_extra_bytes=7), STACK, "naive")
    question.refuse_mixing(
        replace(
            run_of(),
            experiment={
                **run_of().experiment,
                "conditions": {**run_of().experiment["conditions"], "image_digest": ""},
            },
        ),
        replace(beside(), trials=()),
        "x",
    )
    with pytest.raises(IncomparableRecords, match="naive: image_extra_bytes: 0 against 7"):
        between(beside(), beside(image_extra_bytes=7))


def test_one_arm_name_for_two_stacks_is_not_compared():
    one = run_of()
    other = replace(
        one,
        experiment={
            **one.experiment,
            "arms": [
                {**one.experiment["arms"][0], "stack": {"process": "runc", "weights": "pickle"}}
            ],
        },
    )
    with pytest.raises(IncomparableRecords, match=r"stack\.process: process against runc"):
        between(one, other)


def test_two_long_commands_are_told_apart_where_they_differ():
    common = "/opt/server/bin/serve " + "--flag value " * 20
    found = question.differences(
        {"stack.server": common + "--dtype bf16"}, {"stack.server": common + "--dtype fp8"}
    ).different
    assert (
        len(found) == 1
        and "--dtype bf16 against " in found[0]
        and found[0].endswith("--dtype fp8")
        and len(found[0]) < 200
    )


def test_a_simulated_record_is_never_compared_with_a_measured_one():
    with pytest.raises(IncomparableRecords, match="simulated"):
        between(
            run_of(), replace(run_of(), experiment={**run_of().experiment, "simulated": "made up"})
        )


def test_hosts_that_are_not_told_are_not_one_host_in_a_ranking():
    nameless = replace(run_of(), host={})
    (ranking,) = rank([nameless, replace(nameless, id="other")])
    assert len(ranking["hosts"]) == 2


def test_rankings_that_look_alike_say_by_what_they_differ(tmp_path, capsys):
    paths = [
        str(records.write(r, tmp_path / f"{i}.json"))
        for i, r in enumerate((run_of(), run_of("h2"), run_of("h3", timeout_s=5.0)))
    ]
    assert main(["compare", "--rank", *paths]) == 0
    out = capsys.readouterr().out
    assert "timeout_s 5.0" in out and "timeout_s 300.0" in out
    rankings = json.loads(out.splitlines()[-1])["rankings"]
    assert [len(r["hosts"]) for r in rankings] == [2, 1] and rankings[1]["apart"] == {
        "timeout_s": 5.0
    }


def test_a_claim_is_measured_only_between_arms_that_differ_in_nothing_but_the_stack():
    naive, lazy = (
        {
            "name": n,
            "scenario": "fresh-node",
            "link": "1gbit",
            "stack": {"image": i, "weights": "pickle"},
        }
        for n, i in (("naive", "full-pull"), ("lazy", "estargz-lazy"))
    )
    trials = tuple(
        Trial(n, b, 0, total_s=s, phases={"pull": s / 2}, cache={"state": "cold"})
        for b in range(5)
        for n, s in (("naive", 4.0), ("lazy", 1.0))
    )
    run = Run("x", "now", {"id": "h"}, {"arms": [naive, lazy], "preset": "small"}, {}, trials)
    assert [r.technique for r in claims([run]) if r.technique] == ["estargz-lazy"]
    for other in (
        replace(run, experiment={**run.experiment, "arms": [naive, {**lazy, "link": "200mbit"}]}),
        replace(
            run,
            trials=tuple(
                replace(t, cache={"state": "warm"}) if t.arm == "lazy" else t for t in trials
            ),
        ),
    ):
        assert not [r for r in claims([other]) if r.technique]


@pytest.mark.parametrize(
    "more",
    [
        {"command": "sleep 2"},
        {"url": "http://127.0.0.1:8009"},
        {"weights": "other"},
        {"timeout_s": 7.0},
        {"model_name": "x"},
        {"image": "ref"},
        {"scenario": "hot-node"},
    ],
)
def test_a_record_of_ones_own_server_is_not_resumed_with_another(more, workspace, tmp_path):
    from labkit.byo import trials

    for name in ("weights", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.bin").write_text(name)
    given = {"command": "sleep 1", "url": "http://127.0.0.1:8000"}

    def recorded(**more):
        options = OwnOptions(**{**given, "weights": str(tmp_path / "weights"), **more})
        server = OwnServer.of(options.command, options.url, options.weights)
        return trials._record(server, path, datetime.now(), options)

    from datetime import datetime

    path = workspace.runs / "own.json"
    made = recorded()
    records.write(replace(made, trials=(Trial(made.arm_names[0], 0, 0, outcome="timeout"),)), path)
    assert recorded(blocks=9, resume=True).trials
    requested = {**given, "weights": "weights", **more, "out": path, "resume": True}
    requested["weights"] = str(tmp_path / requested["weights"])
    with pytest.raises(BadInput, match="holds another experiment"):
        run_own(OwnOptions(**requested), workspace=workspace)


def test_a_command_line_is_told_apart_by_its_digest_and_not_written_into_the_conditions(
    workspace, tmp_path
):
    from datetime import datetime

    from labkit.byo import trials

    (tmp_path / "w.bin").write_text("x")
    options = OwnOptions(
        command=f"{shlex.quote(sys.executable)} -c pass --api-key hunter2",
        url="http://127.0.0.1:8000",
        weights=str(tmp_path / "w.bin"),
    )
    server = OwnServer.of(options.command, options.url, options.weights)
    made = trials._record(server, workspace.runs / "x.json", datetime.now(), options)
    assert (
        "hunter2" not in json.dumps(made.experiment["conditions"])
        and len(made.experiment["conditions"]["command"]) == 16
    )


def test_arms_of_one_record_that_do_not_start_alike_have_no_ratio_anywhere(tmp_path, capsys):
    from labkit.decide.gains import gains
    from labkit.stack.ablate import effects

    arms = [
        {
            "name": n,
            "scenario": "fresh-node",
            "link": "1gbit",
            "stack": {"image": "full-pull", "weights": w},
        }
        for n, w in (("naive", "pickle"), ("fast", "safetensors"))
    ]
    trials = tuple(
        Trial(n, b, 0, total_s=s, phases={"load": s / 2}, unaccounted_s=0.0, cache={"state": state})
        for b in range(5)
        for n, s, state in (("naive", 4.0, "cold"), ("fast", 1.0, "warm"))
    )
    run = Run("x", "now", {"id": "h"}, {"arms": arms, "preset": "small", "blocks": 5}, {}, trials)
    assert "cache state: warm against cold" in effects(run)[1].missing
    assert gains(run) == []
    path = str(records.write(run, tmp_path / "x.json"))
    assert (
        main(["show", "--json", path]) == 0 and json.loads(capsys.readouterr().out)["ratios"] == {}
    )
    assert (
        main(["compare", path]) == 0 and "cache state: cold against warm" in capsys.readouterr().out
    )


def test_a_record_without_an_init_layer_built_its_model_as_its_loader_did():
    from labkit.weights.catalog import LOADERS

    default = {name: loader.init for name, loader in LOADERS.items() if loader.init != "meta"}
    assert default == question.INIT_OF_LOADER

    def stacked(**layers: str) -> dict:
        run = run_of()
        arm = {**run.experiment["arms"][0], "stack": layers}
        return question.conditions_of(
            replace(run, experiment={**run.experiment, "arms": [arm]}), arm["name"]
        )

    said = question.differences(stacked(weights="pickle"), stacked(weights="pickle", init="random"))
    assert not said.different
    said = question.differences(stacked(weights="pickle"), stacked(weights="pickle", init="meta"))
    assert said.different == ("stack.init: none against meta",)
