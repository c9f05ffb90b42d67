"""CUDA checkpoints of one server, again and again: parked, woken, and asked for the same tokens.

    python -m labkit.device.gpu_parts checkpoint --preset 1b --times 5

Limit: bytes ÷ the bus's rate, each way. Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labkit.core import timeline
from labkit.device import cuda_checkpoint as cuda
from labkit.device import served
from labkit.device.nvml import device_used_bytes, persistence_mode
from labkit.device.trial_output import Notify, driver_name, fail


def checkpoint(preset: str, times: int, found: dict[str, Any], notify: Notify) -> None:
    """One server, parked and woken again and again; after each the same tokens."""
    driver = cuda.open_driver()
    found |= {
        "preset": preset,
        "driver": driver_name(driver),
        "persistence_mode": persistence_mode(),
        "device_used_before_bytes": device_used_bytes(),
        "times": [],
    }
    with served.server(preset) as serving:
        driver = cuda.open_driver()  # again: the simulated one knows the process from now on
        found |= {
            "start_s": serving.start_s,
            "start_phases_s": serving.phases_s,
            "held_running": served.held(serving.pid),
        }
        notify()
        for _ in range(times):
            one: dict[str, Any] = {
                "resident_running_bytes": served.resident_bytes(serving.pid),
                "device_used_running_bytes": device_used_bytes(),
            }
            found["times"].append(one)
            parked = cuda.park(driver, serving.pid)
            one |= {
                "park": parked.seconds,
                "device_bytes": parked.memory_bytes["before"],
                "device_parked_bytes": parked.memory_bytes["checkpoint"],
                "device_used_parked_bytes": device_used_bytes(),
                "resident_parked_bytes": served.resident_bytes(serving.pid),
            }
            found.setdefault("held_parked", served.held(serving.pid))
            notify()
            woken = cuda.wake(driver, serving.pid)
            began = timeline.now_s()
            after = served.ask(serving.port, serving.ended)
            one |= {
                "wake": woken.seconds,
                "device_woken_bytes": woken.memory_bytes["unlock"],
                "device_used_woken_bytes": device_used_bytes(),
                "first_token_after_wake_s": (
                    (after.first_token_s - began) if after.first_token_s else None
                ),
                "equal_tokens": after.tokens == serving.answer.tokens,
            }
            moved = _moved(one)
            took_s = {
                "park": parked.seconds["checkpoint_s"],
                "wake": woken.seconds["restore_s"],
            }
            one["rates_bytes_per_s"] = {n: moved / s for n, s in took_s.items() if moved and s}
            notify()
            if not one["equal_tokens"]:
                fail(
                    found,
                    "after waking",
                    served.death(serving.pid, serving.log)
                    or after.error
                    or "other tokens than before",
                )
                if serving.ended():
                    return


def _moved(one: Mapping[str, Any]) -> int:
    """Bytes that left the device: by the process's own count, else by what the device had free
    before and after."""
    if one.get("device_bytes"):
        return int(one["device_bytes"]) - int(one.get("device_parked_bytes") or 0)
    return max(
        0,
        int(one.get("device_used_running_bytes") or 0)
        - int(one.get("device_used_parked_bytes") or 0),
    )
