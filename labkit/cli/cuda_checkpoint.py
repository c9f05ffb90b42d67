"""`labkit cuda-checkpoint`: the arguments of NVIDIA's utility, so that CRIU's CUDA plugin and
scripts can call it in its place.

Exit status 0: done; 1: the driver refused (the message says in which state the process is now)."""

from __future__ import annotations

import argparse
import sys

from labkit.core.arguments import count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--toggle", action="store_true", help="running → checkpointed, or back")
    action.add_argument(
        "--action", choices=["lock", "checkpoint", "restore", "unlock"], help="one step"
    )
    action.add_argument(
        "--get-state", action="store_true", help="print running, locked, checkpointed or failed"
    )
    action.add_argument(
        "--get-restore-tid", action="store_true", help="print the id of the thread that restores"
    )
    parser.add_argument("--pid", type=count("--pid", 1, 1 << 22), required=True)
    parser.add_argument(
        "--timeout",
        type=count("--timeout", 0, 86_400_000),
        default=0,
        metavar="MS",
        help="of lock, in milliseconds; 0: none",
    )
    parser.add_argument(
        "--verbose", "-v", action="store_true", help="seconds and GPU memory of each step"
    )
    parser.epilog = "LABKIT_FAKE_CUDA=FILE takes the simulated driver, whose state is in FILE."


def run(args: argparse.Namespace) -> int:
    from labkit.device import cuda_checkpoint as cuda

    driver = cuda.open_driver()
    try:
        if args.get_state:
            print(cuda._state(driver, args.pid))
            return 0
        if args.get_restore_tid:
            print(driver.restore_thread(args.pid))
            return 0
        if args.toggle:
            steps = cuda.toggle(driver, args.pid, timeout_ms=args.timeout or 10_000)
        else:
            steps = cuda.Steps(args.pid)
            cuda.step(driver, args.pid, args.action, timeout_ms=args.timeout, steps=steps)
    except (cuda.CudaCheckpointError, cuda.DriverRefused) as error:
        print(f"cuda-checkpoint: {error}", file=sys.stderr)
        return 1
    if args.verbose:
        label = getattr(driver, "label", "")
        for action in steps.done:
            print(
                f"{action}: {steps.seconds[action + '_s'] * 1e3:.1f} ms, GPU memory after it:"
                f" {steps.memory_bytes[action]} bytes" + (f" ({label})" if label else "")
            )
    return 0
