"""Bring your own server: any OpenAI-compatible server, measured from outside, with nothing in it
changed.

    labkit run --command 'transformers serve DIR --port 8000' --url http://127.0.0.1:8000 --weights
        DIR

Lesson: notebooks/09_decide.
"""

from __future__ import annotations

from typing import Any


def run_byo(args: Any, progress: Any = None) -> Any:
    """`labkit run --command …`: returns the record (`labkit.core.records.Run`)."""
    from labkit.byo.trials import run

    return run(
        command=args.own_command,
        url=args.url,
        weights=args.weights,
        image=args.image,
        model_name=args.model_name,
        blocks=args.blocks,
        scenario=args.scenario,
        timeout_s=args.timeout,
        out=args.out,
        resume=args.resume,
        overwrite=args.overwrite,
        progress=progress,
    )
