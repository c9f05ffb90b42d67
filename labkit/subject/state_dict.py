"""A PyTorch checkpoint's tensors by name, without running code from it: what every reader of a
`.bin` asks.

    read_state_dict("pytorch_model.bin")                        # {"model.norm.weight": tensor, …}
    read_state_dict("pytorch_model.bin", mmap=can_map(path))    # views of the file where it can be

Both of PyTorch's formats are read: the zip, and what it wrote before 1.6, which cannot be mapped.
A checkpoint as training frameworks keep it is taken out of its wrapping: the state dict under
`state_dict` or `model`, names without the wrapper's `module.`. Limit: every byte once. Lesson:
notebooks/04_model_formats."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from labkit.errors import BadInput, LabError
from labkit.formats.not_weights import instead_of_weights
from labkit.formats.weight_files import NESTED_UNDER

if TYPE_CHECKING:
    import torch

#: What wraps a model adds its own name in front: DataParallel, torch.compile, a LightningModule.
_WRAPPERS = ("module.", "_orig_mod.")
_TWICE = ("model.model.", "model.lm_head.")


def can_map(file: str | os.PathLike[str]) -> bool:
    """Is it a zip? PyTorch maps those only."""
    try:
        with open(file, "rb") as opened:
            return opened.read(2) == b"PK"
    except OSError:
        return False


def read_state_dict(
    file: str | os.PathLike[str], *, mmap: bool = False, device: str = "cpu"
) -> dict[str, torch.Tensor]:
    """The tensors of one file. `device`: "meta" for their shapes alone. Raises BadInput."""
    import torch

    if mmap and not can_map(file):
        raise instead_of_weights(file) or BadInput(
            f"{file}: no zip, so it cannot be mapped",
            why="it was saved in the format of PyTorch before 1.6",
            fix="load it without mmap, or rewrite it: labkit model convert DIR OUT --to pickle",
        )
    try:
        found = torch.load(file, map_location=device, weights_only=True, mmap=mmap)
    except (LabError, MemoryError):
        raise
    except Exception as error:  # zip, pickle and torch each raise their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise instead_of_weights(file) or BadInput(
            f"{file}: torch.load refused it: {reason[:200]}",
            why="a truncated shard, or one that would run code: nothing of it was run",
            fix=f"fetch it again; labkit model inspect {file} lists what it would run",
        ) from None
    return unwrapped(found, str(file))


def unwrapped(found: object, where: str) -> dict[str, torch.Tensor]:
    """The tensors by name in what a checkpoint held. Raises BadInput where there are none."""
    tensors = _named(found)
    if not tensors and isinstance(found, Mapping):
        nested = (_named(found.get(key)) for key in NESTED_UNDER)
        tensors = next((state for state in nested if state), {})
    if not tensors:
        holds = f"a {type(found).__name__}"
        if isinstance(found, Mapping):
            holds += " of " + (", ".join(repr(k)[:40] for k in list(found)[:5]) or "nothing")
        raise BadInput(
            f"{where}: not a state dict (tensors by name), it holds {holds}",
            why="there is nothing to load by name",
            fix="save model.state_dict()",
        )
    return _without_wrappers(tensors)


def _named(found: Any) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(found, Mapping):
        return {}
    return {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}


def _without_wrappers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            return _without_wrappers({n.removeprefix(prefix): t for n, t in tensors.items()})
    # the names of a causal model begin with model. themselves: only a second one is a wrapper's
    if any(n.startswith(_TWICE) for n in tensors) and all(n.startswith("model.") for n in tensors):
        return {n.removeprefix("model."): t for n, t in tensors.items()}
    return tensors
