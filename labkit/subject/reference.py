"""What the subject should answer: greedy tokens (and their log probabilities), computed once, off
the clock.

    reference(DIR, "The first token", 8)["tokens"] -> [3161, 1629, …]

Computed in a process of its own (torch never enters the harness) by the plainest path there is:
meta build, one pread per tensor, eager decoding. Kept in the workspace, keyed by the model's config
and digests (or sizes and times of its files), prompt, length, device, dtype and torch version.
Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from labkit.core.beside import replacing
from labkit.core.interpreter import module
from labkit.core.json_types import JsonObject
from labkit.core.workspace import Workspace
from labkit.errors import BadInput, LabError


def _key(directory: Path, question: JsonObject) -> str:
    state = hashlib.sha256(json.dumps(question, sort_keys=True).encode())
    for file in sorted(p for p in directory.iterdir() if p.is_file()):
        stat = file.stat()
        state.update(f"{file.name}:{stat.st_size}:".encode())
        state.update(
            file.read_bytes() if stat.st_size < 1 << 20 else str(stat.st_mtime_ns).encode()
        )
    return state.hexdigest()[:24]


def reference(
    model_dir: str | os.PathLike[str],
    prompt: str | Sequence[int],
    max_tokens: int,
    *,
    device: str = "cpu",
    dtype: str = "",
    workspace: Workspace | None = None,
) -> JsonObject:
    """{"tokens", "logprobs", "text", "device", "dtype", "torch"} for a local model directory.
    Raises BadInput."""
    directory = Path(model_dir).expanduser().absolute()
    if not directory.is_dir():
        raise BadInput(f"{directory}: no such directory", fix="labkit model make --preset tiny DIR")
    from importlib.metadata import version

    question = {
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "max_tokens": max_tokens,
        "device": device,
        "dtype": dtype,
        "torch": version("torch"),
        "recipe": 3,
    }
    kept = (
        (workspace or Workspace.default()).artifacts
        / "reference"
        / f"{_key(directory, question)}.json"
    )
    if kept.exists():
        return json.loads(kept.read_text())
    done = subprocess.run(
        [*module("labkit.subject.reference"), str(directory)],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    answer = (
        json.loads(lines[-1])
        if lines and lines[-1].startswith("{")
        else {
            "error": {
                "what": f"the reference computation ended with {done.returncode}",
                "why": done.stderr[-1000:],
                "fix": "",
            }
        }
    )
    if "error" in answer:
        raise BadInput(**answer["error"])
    kept.parent.mkdir(exist_ok=True)
    with replacing(kept) as part:
        part.write_text(json.dumps(answer))
    return answer


def compute(directory: str, question: JsonObject) -> JsonObject:
    import torch

    from labkit.subject import plain
    from labkit.subject.config import LlamaConfig
    from labkit.subject.decode import generate
    from labkit.subject.llama import Llama
    from labkit.subject.text_stream import TextStream
    from labkit.subject.tokenizer import Tokenizer

    config = LlamaConfig.from_dir(directory)
    with torch.device("meta"):
        model = Llama(config, getattr(torch, question["dtype"] or config.dtype))
    plain.load(model, directory, question["device"])
    model.finish()
    prompt = question["prompt"]
    tokenizer = Tokenizer.from_dir(directory) if isinstance(prompt, str) else None
    ids = tokenizer.encode(prompt) if tokenizer else prompt
    steps = list(generate(model, ids, question["max_tokens"], eos=config.eos_token_ids))
    tokens = [t for t, _ in steps]
    text = ""
    if tokenizer:
        stream = TextStream(tokenizer, ids)
        shown = tokens[:-1] if tokens[-1:] and tokens[-1] in config.eos_token_ids else tokens
        text = "".join(map(stream.push, shown)) + stream.end()
    return {
        "device": question["device"],
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "tokens": tokens,
        "logprobs": [p for _, p in steps],
        "text": text,
        "prompt_tokens": list(ids),
    }


if __name__ == "__main__":
    try:
        print(json.dumps(compute(sys.argv[1], json.loads(sys.stdin.read()))))
    except LabError as error:
        print(json.dumps({"error": {"what": error.what, "why": error.why, "fix": error.fix}}))
