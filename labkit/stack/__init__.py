"""Stacks: one technique for each layer, composed into a launch plan, run in experiments, taken
apart by ablation.

    run = experiment(["naive"], preset="small", blocks=5)
    Stack.parse("image=estargz-lazy,weights=labkit-streamer")

Lesson: notebooks/08_stacking.
"""

from labkit.stack.compose import NAMED, Stack
from labkit.stack.experiment import experiment
from labkit.stack.spec import Experiment

__all__ = ["NAMED", "Experiment", "Stack", "experiment"]
