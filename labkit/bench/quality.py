"""What a quantised file costs in answers: the same prompts through the same server model, logits
against full precision.

    formats_against_quality(preset="small", kinds=("F16", "Q8_0", "Q4_0"))
    # [{"format", "size_bytes", "convert_s", "load_s", "distance", "agree"}, …]

`distance`: largest absolute difference of a logit, in float32 · `agree`: share of positions with
the same greedy choice. With the random weights of a synthetic checkpoint greedy choices are
near-ties: judge by the distance, and measure your own model. Lesson: notebooks/04_model_formats.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core.beside import scratch
from labkit.core.json_types import JsonObject

if TYPE_CHECKING:
    import torch

    from labkit.subject.llama import Llama


def formats_against_quality(
    preset: str = "small",
    kinds: Sequence[str] = ("F16", "Q8_0", "Q4_0"),
    prompt: str = "The first token of a cold start",
) -> list[JsonObject]:
    """Full precision first. Converted files are removed again."""
    from labkit.core.workspace import Workspace
    from labkit.formats.weight_files import local
    from labkit.subject.checkpoint import ensure
    from labkit.subject.tokenizer import Tokenizer
    from labkit.weights.convert import convert
    from labkit.weights.loaders import ggufs, safe

    workspace = Workspace.default()
    source = ensure(workspace, preset)
    ids = Tokenizer.from_dir(source).encode(prompt)
    reference, load_s = _logits(safe.load_pread, source, ids)
    rows = [
        {
            "format": "BF16",
            "size_bytes": local(source).size_bytes,
            "convert_s": 0.0,
            "load_s": load_s,
            "distance": 0.0,
            "agree": 1.0,
        }
    ]
    for kind in kinds:
        with scratch("quality-", workspace.artifacts) as home:
            facts = convert(source, home / "model", f"gguf:{kind}")
            logits, load_s = _logits(ggufs.load, home / "model", ids, source)
            rows.append(
                {
                    "format": kind,
                    "size_bytes": facts["size_bytes"],
                    "convert_s": facts["convert_s"],
                    "load_s": load_s,
                    "distance": float((logits - reference).abs().max()),
                    "agree": float((logits.argmax(-1) == reference.argmax(-1)).float().mean()),
                }
            )
    return rows


def _logits(
    load: Callable[[Llama, str, str], object],
    directory: Path,
    ids: Sequence[int],
    config_dir: Path | None = None,
) -> tuple[torch.Tensor, float]:
    """(logits, one row a position; seconds of the load)."""
    import torch

    from labkit.subject.config import LlamaConfig
    from labkit.subject.llama import Llama

    with torch.device("meta"):
        model = Llama(LlamaConfig.from_dir(config_dir or directory), dtype=torch.float32)
    start_s = time.monotonic()
    load(model, str(directory), "cpu")
    load_s = time.monotonic() - start_s
    with torch.inference_mode():
        return model.finish()(torch.tensor([list(ids)]))[0], load_s
