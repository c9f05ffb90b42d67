"""Facts of a small experiment that is no run of trials: measured here, or recorded elsewhere and
then stamped.

    touched, stamp = live_or_recorded(lambda: touch(…), "03_lazy_pull", "touched")

Records lie in data/recorded/<host>/facts/<name>.json: {"host": title, key: facts, …}. Only a
missing capability is replaced. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

from collections.abc import Callable

from labkit.core import printable, record_schema
from labkit.core.json_types import JsonObject
from labkit.errors import BadInput, MissingCapability
from labkit.stack.replay import folder


def live_or_recorded(
    measure: Callable[[], JsonObject], name: str, key: str
) -> tuple[JsonObject, str]:
    """(facts, ""), or (facts of a record, "replayed from <host>"). Raises MissingCapability where
    there is no record either."""
    try:
        return measure(), ""
    except MissingCapability as missing:
        for path in sorted(folder().glob(f"*/facts/{name}.json")):
            doc = record_schema.document(path, fix="restore the file from the lab's repository")
            try:
                record_schema.sound(doc)
                record_schema.shaped(
                    {"host": record_schema.text, key: record_schema.mapped()}, ("host", key)
                )(doc, "")
            except record_schema.InvalidField as wrong:
                raise BadInput(
                    f"{printable.line(path)} does not hold the facts {key!r}: {wrong}",
                    fix="restore the file from the lab's repository",
                ) from None
            host = printable.line(doc["host"])
            print(
                f"Not measured here: {missing.what}. What follows was recorded on: {host}.\nTo"
                f" change that: {missing.fix}"
            )
            return doc[key], f"replayed from {host}"
        raise
