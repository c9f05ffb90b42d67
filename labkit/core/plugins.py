"""What other packages bring: objects behind the entry points of a group.

A package declares them in its pyproject.toml, and installing it is all that is needed:

    [project.entry-points."labkit.techniques"]
    willneed = "labkit_willneed:WillNeed"

A package that cannot be imported is named on stderr, once, and left out: the lab goes on without
it. Limit: reading the metadata of all installed packages takes some 20 ms, so only those ask who
list techniques, never a server. Lesson: none; examples/technique-plugin is one.
"""

from __future__ import annotations

import functools
import sys
from importlib import metadata

from labkit.core import printable
from labkit.core.json_types import JsonObject

TECHNIQUES, LOADERS = "labkit.techniques", "labkit.loaders"


@functools.cache
def found(group: str) -> JsonObject:
    """Entry point's name -> the object it names, in the order of names."""
    objects = {}
    for entry in sorted(metadata.entry_points(group=group), key=lambda e: e.name):
        try:
            objects[entry.name] = entry.load()
        except Exception as error:  # a stranger's module may raise anything
            complain(entry.name, entry.value, f"{type(error).__name__}: {error}")
    return objects


def complain(name: str, where: str, what: str) -> None:
    print(
        printable.line(f"labkit: the plugin {name} ({where}) is left out: {what}"), file=sys.stderr
    )
