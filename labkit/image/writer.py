"""The files of an image, written by a process of its own.

Thirty thousand small files are a second of interpreter and two of system calls; decompression and
digests are three seconds on another core. In one process they take turns at the interpreter's lock,
so the writer gets a process. Plain chunks go through a ring of shared memory, their order through a
pipe:

    with writing(rootfs, limits) as writer:
        for plain in layers: writer.layer(plain)      # chunks of the uncompressed tar
        facts = writer.commit()                       # nothing has its name before this

What the writer refuses (BadInput) is raised here. If the parent goes, the pipe ends and the writer
removes what it has. Limit: system calls for each file, then the page cache. Memory: the ring, 32
MiB. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO

from labkit import errors
from labkit.core.interpreter import module
from labkit.core.json_types import JsonObject
from labkit.image.tree import Limits, growing
from labkit.image.unpack import apply_layer

SLOTS, SLOT_BYTES = 32, 1 << 20
_MESSAGE = struct.Struct("<ii")  # slot, bytes in it; or one of these two
_END_OF_LAYER, _COMMIT = (-1, 0), (-2, 0)
# the writer sends the numbers of slots that are free again, at last this and a document
_RESULT = 0xFF


class Writer:
    """The parent's end."""

    def __init__(self, rootfs: str | os.PathLike[str], limits: Limits):
        ring = os.memfd_create("labkit-unpack", os.MFD_CLOEXEC)
        try:
            os.ftruncate(ring, SLOTS * SLOT_BYTES)
            self._memory = mmap.mmap(ring, SLOTS * SLOT_BYTES)
            arguments = json.dumps(
                {"rootfs": os.fspath(rootfs), "limits": asdict(limits), "ring": ring}
            )
            self._process = subprocess.Popen(
                [*module("labkit.image.writer"), arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[ring],
                bufsize=0,
            )
        finally:
            os.close(ring)
        assert self._process.stdin and self._process.stdout
        self._orders, self._answers = self._process.stdin, self._process.stdout
        self._free = list(range(SLOTS))

    def layer(self, chunks: Iterable[bytes]) -> None:
        """Have one layer applied. Raises what the writer refuses, and what the chunks raise (then
        nothing is kept)."""
        for chunk in chunks:
            for at in range(0, len(chunk), SLOT_BYTES):
                piece = chunk[at : at + SLOT_BYTES] if len(chunk) > SLOT_BYTES else chunk
                slot = self._slot()
                self._memory[slot * SLOT_BYTES : slot * SLOT_BYTES + len(piece)] = piece
                self._order(slot, len(piece))
        self._order(*_END_OF_LAYER)

    def commit(self) -> JsonObject:
        """Wait until all is written and has its name. Returns members, written_bytes,
        skipped_xattrs."""
        self._order(*_COMMIT)
        while (result := self._answer()) is None:
            pass
        return result

    def end(self) -> None:
        """Idempotent. Before a commit: nothing is kept."""
        with contextlib.suppress(OSError):
            self._orders.close()
        self._process.wait()
        self._answers.close()
        self._memory.close()

    def _order(self, slot: int, size: int) -> None:
        try:
            self._orders.write(_MESSAGE.pack(slot, size))
        except BrokenPipeError:
            while self._answer() is None:  # raises why it ended
                pass

    def _slot(self) -> int:
        while not self._free:
            self._answer()
        return self._free.pop()

    def _answer(self) -> JsonObject | None:
        """Slots that came back (None), or the result. Raises the writer's error."""
        raw = self._answers.read(SLOTS)
        at = raw.find(_RESULT) if raw else 0
        if raw and at < 0:
            self._free.extend(raw)
            return None
        document = raw[at + 1 :] + (self._answers.readall() if raw else b"")  # type: ignore[attr-defined]
        if not document:
            raise errors.LabError(
                "the process that writes the image's files ended with status"
                f" {self._process.wait()}",
                why="killed, or out of memory",
                fix="pull again",
            )
        result: JsonObject = json.loads(document)
        if "error" in result:
            error = result["error"]
            raise getattr(errors, error["kind"], errors.LabError)(
                error["what"], error["why"], error["fix"]
            )
        return result


@contextlib.contextmanager
def writing(rootfs: str | os.PathLike[str], limits: Limits = Limits()) -> Iterator[Writer]:
    writer = Writer(rootfs, limits)
    try:
        yield writer
    finally:
        writer.end()


class _ParentEnded(Exception):
    """The parent ended before the commit."""


def _order_from(orders: IO[bytes]) -> tuple[int, int]:
    raw = orders.read(_MESSAGE.size)
    if len(raw) < _MESSAGE.size:
        raise _ParentEnded
    order: tuple[int, int] = _MESSAGE.unpack(raw)
    return order


def _layers(orders: IO[bytes], memory: memoryview) -> Iterator[Iterator[memoryview]]:
    """Layers until the commit, each an iterator of chunks; a slot is given back when the next chunk
    is asked for."""

    def layer(slot: int, size: int) -> Iterator[memoryview]:
        while (slot, size) != _END_OF_LAYER:
            yield memory[slot * SLOT_BYTES : slot * SLOT_BYTES + size]
            os.write(1, bytes([slot]))
            slot, size = _order_from(orders)

    while (first := _order_from(orders)) != _COMMIT:
        yield layer(*first)


def main(arguments: str) -> int:
    spec = json.loads(arguments)
    memory = memoryview(mmap.mmap(spec["ring"], SLOTS * SLOT_BYTES, prot=mmap.PROT_READ))
    try:
        with growing(Path(spec["rootfs"]), Limits(**spec["limits"])) as tree:
            for chunks in _layers(sys.stdin.buffer, memory):
                apply_layer(chunks, tree)
                for _ in chunks:  # padding after the end mark belongs to the layer
                    pass
            result: JsonObject = {
                "members": tree.members,
                "written_bytes": tree.written_bytes,
                "skipped_xattrs": tree.skipped_xattrs,
            }
    except (_ParentEnded, KeyboardInterrupt):
        return 1
    except errors.LabError as error:
        result = {"error": error.as_json()}
    except OSError as error:
        result = {
            "error": (
                errors.LabError(
                    f"the image cannot be written: {error}",
                    why="nothing of it was kept",
                    fix="free space, or another LABKIT_HOME",
                ).as_json()
            )
        }
    os.write(1, bytes([_RESULT]))
    os.write(1, json.dumps(result).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
