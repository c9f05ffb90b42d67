"""What an experiment measures, and everything that was chosen for it.

    Experiment([Stack.parse("naive")], preset="tiny", blocks=5).described()["conditions"]

Lesson: notebooks/01_anatomy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from labkit.core import question
from labkit.core.json_types import JsonMapping, JsonObject
from labkit.core.plan import device_arguments
from labkit.stack.compose import Stack

PROMPT = "The first token of a cold start"


@dataclass(frozen=True)
class Experiment:
    """What is measured. Arms are stacks; one scenario and one link for all of them, so that they
    may be compared."""

    stacks: Sequence[Stack]
    preset: str = "small"
    blocks: int = 5
    scenario: str = "fresh-node"
    link: str = "loopback"
    seed: int = 0
    max_tokens: int = 8
    timeout_s: float = 300.0
    server_args: tuple[str, ...] = ()
    device: str = "cpu"  # of all servers
    model_dir: str = ""  # a public model directory in place of the preset's synthetic checkpoint
    # s3://bucket/prefix or gs://…, with the environment's credentials: where a fresh node finds the
    # weights instead
    store: str = ""
    # unpacked bytes on top of the subject's image: the same start from a larger image
    image_extra_bytes: int = 0
    at_t0: str = ""
    port: int | None = None
    instrument: bool = True
    again: int = 1  # how many disturbed trials of a block are measured again
    # how the device was chosen (labkit.stack.placement)
    placement: JsonMapping = field(default_factory=dict)
    notes: JsonMapping = field(default_factory=dict)

    def described(self) -> JsonObject:
        return {
            "arms": [
                {
                    "name": s.name,
                    "stack": {k: v for k, v in s.layers.items() if v},
                    "scenario": self.scenario,
                    "link": self.link,
                }
                for s in self.stacks
            ],
            "blocks": self.blocks,
            "seed": self.seed,
            "preset": self.preset,
            "model_dir": self.model_dir,
            "max_tokens": self.max_tokens,
            **({"image_extra_bytes": self.image_extra_bytes} if self.image_extra_bytes else {}),
            **({"store": self.store} if self.store else {}),
            **({"placement": dict(self.placement)} if self.placement else {}),
            **({"notes": dict(self.notes)} if self.notes else {}),
            "conditions": self.conditions(),
        }

    def conditions(self) -> JsonObject:
        """Everything that was chosen, for `labkit.core.question`: what of it differs makes another
        experiment."""
        return question.chosen(
            preset=self.preset,
            model_dir=self.model_dir,
            model_identity=question.identity(self.model_dir),
            image=question.LAB_IMAGE,
            image_extra_bytes=self.image_extra_bytes,
            store=self.store,
            server_args=[*self.server_args, *device_arguments(self.device)],
            device=self.device,
            timeout_s=float(self.timeout_s),
            prompt=PROMPT,
            max_tokens=self.max_tokens,
            at_t0=question.digest(self.at_t0),
            instrument=self.instrument,
        )
