"""Where servers run: chosen from what is here, said in the record, the figures and the JSON,
overridden by who asks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from labkit.cli.experiments import summary
from labkit.core import host, question, records
from labkit.core.records import Run, Trial
from labkit.errors import BadInput
from labkit.stack import placement
from labkit.stack.ablate import candidates
from labkit.stack.compose import Stack
from labkit.stack.placement import place
from labkit.stack.spec import Experiment
from labkit.viz import captions
from labkit.viz.text_summary import text

NAIVE, RESTORED = Stack.parse("no-image"), Stack.parse("no-image,snapshot=criu-process")


@pytest.fixture
def machine(monkeypatch):
    def made(gpu: bool = True, cuda: str = "13.0", driver: str = "580.1"):
        monkeypatch.setattr(
            host,
            "gpus",
            lambda: (
                [{"name": "NVIDIA H100", "memory_bytes": 1, "driver": driver, "mig": False}]
                if gpu
                else []
            ),
        )
        monkeypatch.setattr(host, "torch_cuda", lambda: cuda)
        monkeypatch.delenv(placement.ENV, raising=False)

    return made


def test_a_gpu_that_torch_can_use_is_chosen_and_named(machine):
    machine()
    found = place([NAIVE])
    assert (found.device, found.chosen, found.name) == ("cuda", True, "NVIDIA H100")
    assert "CUDA 13.0" in found.why


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ({"gpu": False}, "no GPU"),
        ({"cuda": ""}, "without CUDA"),
        ({"driver": "570.86"}, "older than 580"),
        ({"cuda": "12.8", "driver": "470.1"}, "older than 525"),
    ],
)
def test_elsewhere_it_is_the_cpu_and_the_reason_is_said(machine, here, said):
    machine(**here)
    found = place([NAIVE])
    assert found.device == "cpu" and said in found.why


def test_a_driver_of_an_unknown_version_is_given_a_try(machine):
    machine(driver="?")
    assert place([NAIVE]).device == "cuda"


def test_who_asks_is_obeyed_before_the_environment_and_that_before_the_choice(machine, monkeypatch):
    machine()
    assert place([NAIVE], "cpu").device == "cpu" and not place([NAIVE], "cpu").chosen
    assert place([NAIVE], "cuda:1").device == "cuda:1"
    monkeypatch.setenv(placement.ENV, "cpu")
    assert place([NAIVE]).device == "cpu" and placement.ENV in place([NAIVE]).why
    assert place([NAIVE], "cuda").device == "cuda"
    monkeypatch.setenv(placement.ENV, "tpu")
    with pytest.raises(BadInput, match="tpu"):
        place([NAIVE])


def test_arms_of_one_run_are_on_one_device(machine, monkeypatch):
    machine()
    assert (
        place([NAIVE, RESTORED]).device == "cpu" and "criu-process" in place([NAIVE, RESTORED]).why
    )
    monkeypatch.setenv(placement.ENV, "cuda")
    assert place([NAIVE, RESTORED]).device == "cpu"
    with pytest.raises(BadInput, match="two devices"):
        place([NAIVE, RESTORED], "cuda")


def test_a_search_on_a_gpu_leaves_out_what_is_of_the_cpu_and_says_so(machine):
    machine()
    names, missing = candidates(host.card(), scenario="warm-node")
    assert (
        not [n for n in names if n.startswith("criu-")]
        and "--device cpu" in missing["criu-process"]
    )
    asked, reasons = candidates(host.card(), scenario="warm-node", device="cpu")
    assert "criu-process" in asked or "--device cpu" not in reasons["criu-process"]


def _run(device: str, gpu: bool = True) -> Run:
    what = Experiment(
        [NAIVE],
        device=device,
        placement={"device": device, "name": "NVIDIA H100", "why": "a GPU is here", "chosen": True},
    )
    card = {"id": "h", "title": "a host", "gpus": [{"name": "NVIDIA H100"}] if gpu else []}
    trial = Trial("no-image", 0, 0, total_s=1.0, phases={"load": 1.0}, cache={"state": "cold"})
    return Run(
        id="1",
        created="2026-11-27T00:00:00+00:00",
        host=card,
        experiment=what.described(),
        trials=(trial,),
    )


def test_the_account_the_captions_and_the_json_say_which_device_it_was():
    run = _run("cuda")
    assert "device cuda (NVIDIA H100): a GPU is here" in text(run) and "--device cpu" in text(run)
    assert "servers on the GPU" in captions.caption(captions.choose(run))
    assert (summary(run)["device"], summary(run)["device_why"]) == ("cuda", "a GPU is here")
    assert "servers on the CPU" in captions.caption(
        captions.choose(_run("cpu"))
    ) and "servers" not in captions.caption(captions.choose(_run("cpu", gpu=False)))


def test_a_chosen_device_is_the_same_question_as_one_asked_for_and_another_than_the_cpu():
    one, asked = _run("cuda"), _run("cuda")
    asked.experiment["placement"] |= {"why": "asked for", "chosen": False}
    assert not question.differences(
        question.conditions_of(one, "no-image"), question.conditions_of(asked, "no-image")
    ).different
    found = question.differences(
        question.conditions_of(one, "no-image"), question.conditions_of(_run("cpu"), "no-image")
    )
    assert any(d.startswith("device: cuda against cpu") for d in found.different)


def test_the_cuda_of_torch_is_read_from_its_file(tmp_path, monkeypatch):
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # another test may have imported it
    for said, wanted in (
        ("cuda: Optional[str] = '13.0'", "13.0"),
        ("cuda = '12.8'", "12.8"),
        ("cuda: Optional[str] = None", ""),
        ("", ""),
    ):
        (package / "version.py").write_text(f"__version__ = '2.11.0'\n{said}\n")
        assert host.torch_cuda() == wanted


def test_a_report_s_device_is_that_of_its_study_and_of_its_notebooks(monkeypatch, tmp_path):
    from labkit.lessons import execute, report, report_parts
    from labkit.study import record

    told: dict[str, object] = {}
    fixture = Path(__file__).resolve().parents[3] / "data" / "fixtures" / "fixture_study.json"

    def conducted(out, options, minutes):
        told["study"] = options.device
        return record.of_run(records.read(fixture))

    def notebook(path, out, values, timeout_s, more=None):
        told["notebook"] = more
        return execute.Result(path.stem, "ok", 0.1)

    monkeypatch.setattr(report, "_conducted", conducted)
    monkeypatch.setattr(report_parts, "page", lambda *_: "")
    monkeypatch.setattr(execute, "run_one", notebook)
    book = Path(__file__).resolve().parents[3] / "notebooks" / "00_start_here.ipynb"
    for device, handed in (("cpu", {placement.ENV: "cpu"}), ("", {})):
        options = report.Options(device=device)
        report.report(tmp_path / device, [book], options, say=lambda text: None)
        assert told == {"study": device, "notebook": handed}
