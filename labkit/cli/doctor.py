"""`labkit doctor`: what this host can show, and what would unlock more. Nothing is changed; nothing
secret is read.

labkit doctor            a table, and the fixes below it labkit doctor --json     only the JSON
line: {"host": {…}, "findings": [{"name", "state", "why", "fix", …}], "floors": {…}}"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from labkit.core.json_types import JsonObject
from labkit.core.stdout import add_json
from labkit.errors import LabError

if TYPE_CHECKING:
    from labkit.core.capabilities import Capability


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument(
        "--no-disk", action="store_true", help="leave out the two seconds that measure the disk"
    )


def run(args: argparse.Namespace) -> int:
    from labkit.core import capabilities, host, probes
    from labkit.core.stdout import last_line, say, table

    findings = capabilities.doctor()
    card = dict(host.card())
    rates, trouble = ({}, None) if args.no_disk else _disk()
    if rates:
        card["disk"] = {
            **card["disk"],
            "read_bytes_per_s": rates.get("disk_read_bytes_per_s"),
            "write_bytes_per_s": rates.get("disk_write_bytes_per_s"),
        }
    if not args.json:
        say(_describe(card))
        say("")
        say(
            table(
                [[f.state, probes.PROBES[f.name].title, f.detail or f.missing] for f in findings],
                ["", "capability", "here"],
            )
        )
        say(
            "".join(
                _change(f, probes.PROBES[f.name].title) for f in findings if f.state != probes.OK
            )
        )
    last_line(
        {
            "command": "doctor",
            "host": card,
            "findings": [f.as_json() for f in findings],
            "floors": rates,
        }
    )
    if trouble:  # after the table: it is what helps to find the cause
        raise trouble
    return 0


def _disk() -> tuple[JsonObject, LabError | None]:
    """Rates of the workspace's disk, or why there are none."""
    from labkit.core import rates
    from labkit.core.refusals import refusal
    from labkit.core.workspace import Workspace

    try:
        return rates.disk(Workspace.default()), None
    except Exception as error:
        refused = refusal(error)
        if refused is None:
            raise
        return {}, refused


def _change(finding: Capability, title: str) -> str:
    """What a missing or limited capability would unlock, and the command that changes it."""
    return (
        f"\n{title} – {finding.state.lower()}: {finding.missing or finding.detail}\n  why:"
        f" {finding.why}\n  fix: {finding.fix}\n"
    )


def _describe(card: JsonObject) -> str:
    from labkit.core.units import show_bytes, show_rate
    from labkit.stack.placement import place

    disk = card["disk"]
    speed = ", ".join(
        f"{verb} {show_rate(disk[key])}"
        for verb, key in (("reads", "read_bytes_per_s"), ("writes", "write_bytes_per_s"))
        if disk[key]
    )
    lines = [
        f"host   {card['title']}  (kind {card['id']})",
        f"       {card['distribution']}, Linux {card['kernel']}"
        + (f", {card['virtualisation']}" if card["virtualisation"] else "")
        + f", as {card['rootness']}",
        f"disk   {disk['model'] or '?'}, {disk['fs']}, {show_bytes(disk['free_bytes'])} free"
        + (f", {speed}" if speed else "")
        + (
            f", the kernel reads {show_bytes(disk['read_ahead_bytes'])} ahead"
            if disk["read_ahead_bytes"]
            else ""
        ),
        f"python {card['python']}, torch {card['torch'] or 'not installed'}"
        + (f", built for CUDA {card['torch_cuda']}" if card["torch_cuda"] else ""),
    ]
    if card["memory"]["free_page_reporting"]:
        lines.append(
            "memory free pages go back to the hypervisor: the next to need them waits for it"
            " (labkit bench load takes care of that)"
        )
    if card["memory"]["evicts_idle"]:
        lines.append(
            "memory the kernel evicts what lies idle (DAMON"
            f" {', '.join(card['memory']['evicts_idle'])}): what is warm now may not stay so"
        )
    lines += [
        f"GPU    {g['name']}, {show_bytes(g['memory_bytes'])}, driver {g['driver']}"
        for g in card["gpus"]
    ]
    if card["gpus"]:
        placed = place(())
        lines.append(f"runs   their servers are on {placed.device}: {placed.why}")
    return "\n".join(lines)
