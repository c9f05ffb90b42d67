"""From named tensors to a model's parameters: the last step of every loader, the same for all.

A model comes with its parameters on the meta device (shapes without storage) or initialised. On
meta a tensor *becomes* the parameter – nothing is copied if it already lies on the device in the
parameter's dtype; into initialised storage it is copied. Every checkpoint tensor must have its
parameter, with its shape, and every parameter its tensor: a model with a parameter left over
answers nonsense without an error. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput

if TYPE_CHECKING:
    import torch

Model: TypeAlias = "torch.nn.Module"


def with_index(device: str) -> str:
    """ "cuda" as the device that it means now ("cuda:0"): libraries beside torch want to be told
    which."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{torch.cuda.current_device()}"


class Placer:
    """Puts tensors into a model one at a time and checks at the end that none is missing.

    placer = Placer(model, "cpu")
    for name, tensor in tensors: placer.put(name, tensor)
    facts = placer.finish()
    """

    def __init__(self, model: Model, device: str = "cpu"):
        self.model, self.device = model, device
        self.slots: dict[str, torch.Tensor] = {}
        self._owners: dict[str, tuple[Model, str]] = {}  # name -> (its module, its name parameter)
        for path, module in model.named_modules(remove_duplicate=False):
            for leaf, parameter in (module._parameters | module._buffers).items():
                if parameter is not None and leaf not in module._non_persistent_buffers_set:
                    name = f"{path}.{leaf}" if path else leaf
                    self.slots[name], self._owners[name] = parameter, (module, leaf)
        self.placed: dict[str, torch.Tensor] = {}
        self.size_bytes = 0

    def slot(self, name: str, shape: Iterable[int]) -> torch.Tensor | None:
        """The parameter that this tensor is for; None for one that a model computes or shares.
        Raises BadInput if there is no parameter of that name or its shape differs."""
        parameter = self.slots.get(name)
        if parameter is None:
            # old checkpoints; a tied head stored twice
            if name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight":
                return None
            raise BadInput(
                f"checkpoint tensor {name} has no parameter in the model",
                why="the checkpoint is of another architecture",
                fix="labkit model inspect FILE lists what it holds",
            )
        if parameter.shape != tuple(shape):
            raise BadInput(
                f"{name}: checkpoint shape {list(shape)}, model shape {list(parameter.shape)}",
                why="config.json and weights are not of the same model",
            )
        return parameter

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """The tensor becomes the parameter, or is copied into it; one that is the parameter's own
        storage is there already."""
        parameter = self.slot(name, tensor.shape)
        if parameter is None:
            return
        _same_kind(name, tensor, parameter)
        if parameter.is_meta:
            self._become(name, parameter, tensor)
        else:
            if tensor is not parameter:
                import torch

                with torch.no_grad():
                    parameter.copy_(tensor)
            self.placed[name] = parameter
        self.size_bytes += parameter.nbytes

    def put_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """A whole state dict at once: torch's own `load_state_dict` where the model is initialised,
        else one by one."""
        filled = {}
        for name, tensor in state.items():
            parameter = self.slot(name, tensor.shape)
            if parameter is not None and parameter.is_meta:
                self.put(name, tensor)
            elif parameter is not None:
                _same_kind(name, tensor, parameter)
                filled[name] = tensor
        if filled:
            self.model.load_state_dict(filled, strict=False)
            self.placed |= {n: self.slots[n] for n in filled}
            self.size_bytes += sum(self.slots[n].nbytes for n in filled)

    def _become(self, name: str, parameter: torch.Tensor, tensor: torch.Tensor) -> None:
        import torch

        if tensor.dtype != parameter.dtype or tensor.device.type != self.device.partition(":")[0]:
            with torch.no_grad():
                tensor = tensor.to(device=self.device, dtype=parameter.dtype)
        module, leaf = self._owners[name]
        if leaf in module._parameters:
            module._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[leaf] = tensor
        self.placed[name] = tensor

    def finish(self) -> JsonObject:
        """Facts, after checking that every parameter has its bytes. A tied head shares the
        embedding's."""
        placed = set(self.placed)
        shared = {id(self.slots[name]) for name in placed}
        missing = [n for n, p in self.slots.items() if n not in placed and id(p) not in shared]
        tied = [n for n in self.slots if n not in placed and n not in missing]
        for name in tied:
            twin = next(n for n in placed if self.slots[n] is self.slots[name])
            if self.slots[name].is_meta:
                module, leaf = self._owners[name]
                twin_module, twin_leaf = self._owners[twin]
                module._parameters[leaf] = twin_module._parameters[twin_leaf]
        if missing:
            raise BadInput(
                f"{len(missing)} parameters are not in the checkpoint: {', '.join(missing[:3])} …",
                why="the model would answer with whatever those parameters hold",
                fix="labkit model verify DIR",
            )
        return {"tensors": len(placed), "size_bytes": self.size_bytes}


def _same_kind(name: str, tensor: torch.Tensor, parameter: torch.Tensor) -> None:
    """Another precision is converted; whole numbers are codes that only their own library reads."""
    if tensor.is_floating_point() != parameter.is_floating_point():
        raise BadInput(
            f"{name}: the checkpoint holds {tensor.dtype}, the model computes in {parameter.dtype}",
            why="quantised or damaged: its numbers are no weights as they stand",
            fix="use the unquantised model",
        )
