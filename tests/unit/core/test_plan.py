"""labkit.core.plan: what a server is started with on a node."""

from __future__ import annotations

import json

import pytest

from labkit.core.plan import LaunchPlan, Step


@pytest.mark.parametrize(
    ("device", "added", "on_gpu"),
    [
        ("cpu", [], False),
        ("cuda", ["--device", "cuda"], True),
        ("cuda:1", ["--device", "cuda:1"], True),
    ],
)
def test_the_command_line_names_the_device_and_what_only_the_node_knows(device, added, on_gpu):
    plan = LaunchPlan(
        stack={}, server_args=("--port", "{port}", "--model", "{node}/model"), device=device
    )
    line = plan.command_line(8000, "/a/{port}")
    assert line == ["--port", "8000", "--model", "/a/{port}/model", *added]
    assert plan.on_gpu is on_gpu


def test_a_plan_goes_through_json_whole():
    plan = LaunchPlan(
        stack={"weights": "mmap"},
        steps=(Step("load", "module:function", {"a": 1}, pre_start="module:before"),),
        device="cuda",
        server_binds=(("/a", "/b"),),
        expected_tokens=(1, 2),
    )
    assert LaunchPlan.from_json(json.loads(json.dumps(plan.as_json()))) == plan
