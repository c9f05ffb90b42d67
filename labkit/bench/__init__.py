"""Benches: the lab's performance claims as commands. One module each, one language
(`labkit.bench.engine`).

A module gives `add_arguments(parser)` and `run(args) -> dict` (the document of the last line, built
by `engine.document`)."""

BENCHES = {
    "overhead": "the same cold start with and without the instrument",
    "import": "the lab's own import",
    "load": "every loader, every cache state, against the floor",
    "pull": "object-store pull, registry pull, the container runtime's pull",
    "convert": "eStargz conversion, ours and the reference tool's",
    "lazy": "full pull, lazy mounts, on slow and fast links",
    "restore": "snapshots against starts",
    "forecast": "the planner's prediction for sizes it was not fitted on",
}


def module_of(name: str) -> str:
    return "labkit.bench." + {"import": "imports"}.get(name, name)
