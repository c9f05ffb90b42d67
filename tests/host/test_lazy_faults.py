"""A cold start from the lazy mount while its registry misbehaves: the right tokens, or the stated
error and nothing left behind.

The whole start is real: the subject's image as optimised eStargz, an emulated link, the best
container this host has, the server's own import of torch, the tokens of the reference. Only the
registry is made to fail."""

from __future__ import annotations

import re
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from labkit.core import host
from labkit.core.ledger import Ledger, marked_pids
from labkit.core.plan import LaunchPlan
from labkit.core.subprocess_call import run_in_subprocess
from labkit.core.trial import TrialOptions, free_port, run_trial
from labkit.core.workspace import Workspace
from labkit.image import build
from labkit.net.serving import Served, serving
from labkit.objects.publish import publish_model
from labkit.stack.compose import Stack, compose, judge, prepare
from labkit.stack.preparation import _model_and_answer
from labkit.stack.spec import PROMPT
from labkit.technique import Artifact, Subject, technique

pytestmark = pytest.mark.needs("fuse")

LINK = "200mbit"
# of blobs, after the server was started: an import of torch needs ten times that
MID_IMPORT_BYTES = 8 << 20
FAULTS = [
    "reset:rate=0.01,path=/v2/",
    "reset:nth=3,path=/blobs/,min_bytes=60000",
    "429:rate=0.05,retry_after=0.1,path=/v2/",
    "429:nth=4,retry_after=0.1,path=/blobs/",
    "corrupt:nth=5,path=/blobs/,min_bytes=60000",
    "straggler:nth=7,slowed_to=50kB/s,path=/blobs/,min_bytes=60000",
]


@dataclass
class Ready:
    """A stack that is prepared: what a trial of it needs, and where its registry finds its
    files."""

    space: Workspace
    stack: Stack
    subject: Subject
    artifacts: dict[str, Artifact]
    tokens: tuple[int, ...]
    roots: dict[str, Path] = field(default_factory=dict)

    def plan(self, url: str, *options: str):
        made = compose(
            self.stack,
            self.artifacts,
            replace(self.subject, registry=url, bucket=url),
            LaunchPlan(
                {},
                "fresh-node",
                LINK,
                request={"prompt": PROMPT, "max_tokens": 4},
                expected_tokens=self.tokens,
                timeout_s=120,
            ),
        )
        steps = [
            replace(s, args={**s.args, "options": list(options)}) if s.phase == "mount" else s
            for s in made.steps
        ]
        return replace(made, steps=tuple(steps))


@pytest.fixture(scope="module")
def ready(lab_home, tmp_path_factory):
    space = Workspace.at(lab_home)
    stack = Stack.parse("image=estargz-lazy,weights=safetensors").resolved(host.card())
    model, answer = run_in_subprocess(_model_and_answer, "", space, "tiny", 4)
    layout, name = run_in_subprocess(build.ensure_image, space)
    made = Ready(
        space,
        stack,
        Subject(model_dir=model, image_layout=layout, image_reference=name, preset="tiny"),
        {},
        tuple(answer["tokens"]),
    )
    made.artifacts = run_in_subprocess(prepare, stack, made.subject, space)
    base = tmp_path_factory.mktemp("served")
    made.roots = {"registry": base / "registry", "store": base / "store"}
    technique("estargz-lazy").publish(made.artifacts["image"], made.subject, made.roots)
    publish_model(
        made.roots["store"],
        Path(made.artifacts["weights"].paths["model_dir"]),
        made.artifacts["weights"].facts["model_key"],
    )
    return made


class Registry:
    """The registry at one address, through its life: taken down in the middle of the server's
    import, back after `away_s` or never."""

    def __init__(self, ready: Ready, ledger: Ledger, away_s: float | None):
        self.ready, self.ledger, self.away_s, self.port = ready, ledger, away_s, free_port()
        self.phases: list[str] = []
        self.faults_hit: dict[str, int] = {}
        self.down_s = 0.0  # monotonic
        self.went_down_during: list[str] = []
        self._started = threading.Event()
        self._over = threading.Event()
        self._ends = ExitStack()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def _up(self) -> Served:
        return self._ends.enter_context(
            serving(
                "store",
                self.ready.roots["store"],
                link=LINK,
                ledger=self.ledger,
                port=self.port,
                faults=FAULTS,
                seed=4,
                options=("--with-registry", str(self.ready.roots["registry"])),
            )
        )

    def _count(self) -> None:
        for kind, times in self.served.stats()["faults"].items():
            self.faults_hit[kind] = self.faults_hit.get(kind, 0) + times

    def on_phase(self, name: str, _seconds: float) -> None:
        self.phases.append(name)
        if name == "start":
            self._started.set()

    def _blob_bytes(self) -> int:
        return sum(
            c["bytes_sent"]
            for path, c in self.served.stats()["by_path"].items()
            if "/blobs/" in path
        )

    def _live(self) -> None:
        self._started.wait(60)
        at_start = self._blob_bytes()
        while self._blob_bytes() < at_start + MID_IMPORT_BYTES and not self._over.wait(0.02):
            pass
        self._count()
        self.down_s, self.went_down_during = time.monotonic(), list(self.phases)
        self._ends.close()
        if self.away_s is not None and not self._over.wait(self.away_s):
            self.phases_while_away = list(self.phases)
            self.served = self._up()

    def __enter__(self) -> Registry:
        self.served = self._up()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._started.set()
        self._thread.join(30)
        self._ends.close()


def nothing_is_left(space: Workspace, mark: str) -> None:
    with open("/proc/self/mountinfo") as lines:
        assert not [line for line in lines if str(space.nodes) in line]
    assert not marked_pids(mark)
    assert not list(space.nodes.iterdir())


def run(ready: Ready, away_s: float | None, *options: str):
    with Ledger.open(ready.space) as ledger:
        with Registry(ready, ledger, away_s) as registry:
            plan = ready.plan(registry.served.url, *options)
            trial = run_trial(
                plan,
                arm="lazy",
                workspace=ready.space,
                ledger=ledger,
                options=TrialOptions(
                    judge=lambda seen: judge(ready.stack, seen), on_phase=registry.on_phase
                ),
            )
            if away_s is not None:
                registry._count()
        watchdog = ledger._watch.pid if ledger._watch else 0
        left = [pid for pid in marked_pids(ledger.mark) if pid != watchdog]
        assert not left
        mark = ledger.mark
    nothing_is_left(ready.space, mark)
    return trial, registry


def test_a_registry_with_faults_that_is_away_for_five_seconds_in_mid_import_only_delays(ready):
    trial, registry = run(ready, 5.0, "--no-background")
    assert trial.outcome == "ok", (trial.outcome, trial.error, trial.log_tail[-2000:])
    assert tuple(trial.tokens) == ready.tokens
    assert (
        "import" not in registry.went_down_during
        and "import" not in registry.phases_while_away
        and "import" in registry.phases
    )
    assert {"reset", "429", "straggler", "corrupt"} <= set(registry.faults_hit), registry.faults_hit
    mount = next(e for e in trial.evidence if e["technique"] == "estargz-lazy")["facts"]["mount"]
    assert mount["errors"] == 0 and mount["corrupt"] >= 1 and mount["retries"] >= 3
    assert trial.total_s > 5


def test_a_registry_that_never_comes_back_is_the_stated_error_and_leaves_nothing(ready):
    trial, registry = run(ready, None, "--no-background", "--io-timeout", "3")
    ended_s = time.monotonic() - registry.down_s
    assert trial.outcome == "crashed" and not trial.tokens, (trial.outcome, trial.error)
    assert "import" not in registry.phases
    waited_s = [
        float(s)
        for s in re.findall(
            r"ERROR blob sha256:[0-9a-f]{64} of http://\S+: bytes \d+-\d+ did not arrive in"
            r" (\d+\.\d) s \(.+\): EIO",
            trial.log_tail,
        )
    ]
    assert waited_s, trial.log_tail
    # one of them; reads after it are told sooner
    assert 3.0 <= max(waited_s) < 4.0 and ended_s > 3, trial.log_tail
    assert len(re.findall(": EIO", trial.log_tail)) < 20
    assert "did not arrive" in trial.error["why"]
