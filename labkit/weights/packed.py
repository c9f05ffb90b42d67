"""A checkpoint in fewer bytes, the same to the bit: for links that are slower than a core.

General compressors find nothing in weights, since the bytes of a number have nothing in common.
Taken apart they do: of BF16 the high byte is a sign and most of the exponent, which a trained or
random layer fills with few values; the low one is noise. Frames of 4 MiB are split by byte, each
plane is compressed where that helps, and any frame can be unpacked as soon as it is here. BF16
shrinks by a third, as published for real models: ZipNN, arXiv 2411.05239.

    facts = pack(Path("/models/1b"), ["model.safetensors"], Path("/out"))          #
        /out/model.safetensors, /out/packed.json
    index = parse_index(raw)
    fetch(client, lambda name: url, {"model.safetensors": (index["model.safetensors"], fd)})

Limit: packed bytes ÷ the link's rate; unpacking runs beside it at about 0.8 GB/s a core. Lesson:
notebooks/07_checkpoints."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput

if TYPE_CHECKING:
    from labkit.net.client import Client

Buffer = bytes | bytearray | memoryview
INDEX = "packed.json"
FRAME_BYTES = 4 << 20
#: Frames on their way or being unpacked at once: at most 256 MB.
BATCH = 64
WIDTHS = (2, 4, 1)  # bytes of a number: BF16 and F16, F32, anything
_PLANE = struct.Struct("<BI")  # compressed?, bytes


def split(raw: bytes, width: int, level: int = 1) -> bytes:
    """One frame: the i-th bytes of all numbers together, each plane compressed where that makes it
    smaller; what is left over as it is."""
    import numpy as np
    import zstandard

    whole = len(raw) // width * width
    numbers, planes = np.frombuffer(raw, np.uint8, whole).reshape(-1, width), []
    for i in range(width):
        plane = numbers[:, i].tobytes()
        small = zstandard.ZstdCompressor(level=level).compress(plane)
        kept = small if len(small) < 0.97 * len(plane) else plane
        planes += [_PLANE.pack(kept is small, len(kept)), kept]
    return b"".join([*planes, raw[whole:]])


def join(data: bytes | bytearray, width: int, size_bytes: int) -> Buffer:
    """The bytes that `split` was given (a buffer). Raises BadInput for a frame that is not one."""
    import numpy as np
    import zstandard

    count, at, planes, view = size_bytes // width, 0, [], memoryview(data)
    try:
        for _ in range(width):
            compressed, size = _PLANE.unpack_from(view, at)
            at += _PLANE.size
            plane = view[at : at + size]
            if len(plane) != size:
                raise ValueError("a plane is cut off")
            planes.append(
                np.frombuffer(
                    (
                        zstandard.ZstdDecompressor().decompress(plane, max_output_size=count)
                        if compressed
                        else plane
                    ),
                    np.uint8,
                )
            )
            at += size
        rest = view[at:]
        if any(len(p) != count for p in planes) or len(rest) != size_bytes - count * width:
            raise ValueError("it unpacks to another size")
    except (ValueError, struct.error, zstandard.ZstdError) as error:
        raise BadInput(
            f"a packed frame is damaged: {error}",
            why="corrupted on the way or in the store; nothing of it is used",
            fix="publish the model again",
        ) from None
    if width == 2 and not rest:  # the common case in two passes instead of two strided copies
        pairs = np.left_shift(planes[1], 8, dtype="<u2")
        return np.bitwise_or(pairs, planes[0], out=pairs).data.cast("B")
    table = np.empty((count, width), np.uint8)
    for i, column in enumerate(planes):
        table[:, i] = column
    return memoryview(table.tobytes() + bytes(rest))


@dataclass(frozen=True)
class Frame:
    at: int  # in the packed file
    stored_bytes: int
    offset: int  # in the file itself
    size_bytes: int
    crc32: int  # of the file's own bytes


@dataclass(frozen=True)
class PackedFile:
    size_bytes: int
    width: int
    frames: tuple[Frame, ...]

    @property
    def stored_bytes(self) -> int:
        return sum(f.stored_bytes for f in self.frames)


def width_of(sample: bytes) -> int:
    """The width that makes this sample smallest; of those within 2 % the first (any multiple of the
    right one does as well)."""
    sizes = {w: len(split(sample, w)) for w in WIDTHS}
    return next(w for w in WIDTHS if sizes[w] <= 1.02 * min(sizes.values()))


def pack(directory: Path, names: Sequence[str], into: Path) -> JsonObject:
    """Files of a model directory, packed under their names, and the index. Returns size_bytes and
    stored_bytes."""
    from labkit.core.timeline import now_s

    crc32, index, began = _crc32(), {}, now_s()
    into.mkdir(parents=True, exist_ok=True)
    for name in names:
        size = os.path.getsize(directory / name)
        with (
            open(directory / name, "rb") as file,
            open(into / name, "wb") as out,
            ThreadPoolExecutor(os.cpu_count()) as pool,
        ):
            width = width_of(os.pread(file.fileno(), 1 << 20, size // 2 // 8 * 8))

            def one(
                offset: int, fd: int = file.fileno(), width: int = width
            ) -> tuple[bytes, int, int]:
                raw = os.pread(fd, FRAME_BYTES, offset)
                return split(raw, width), len(raw), crc32(raw)

            rows: list[list[int]] = []
            for offset, (frame, length, crc) in zip(
                range(0, size, FRAME_BYTES), pool.map(one, range(0, size, FRAME_BYTES)), strict=True
            ):
                rows.append([out.tell(), len(frame), offset, length, crc])
                out.write(frame)
        index[name] = {"size_bytes": size, "width": width, "frames": rows}
    (into / INDEX).write_text(json.dumps({"version": 1, "files": index}))
    return {
        "size_bytes": sum(f["size_bytes"] for f in index.values()),
        "stored_bytes": sum((into / n).stat().st_size for n in names),
        "pack_s": now_s() - began,
    }


def parse_index(raw: bytes) -> dict[str, PackedFile]:
    """Raises BadInput for an index whose frames do not cover their files once, in order."""
    try:
        found = {}
        for name, about in json.loads(raw)["files"].items():
            frames = tuple(Frame(*(int(n) for n in row)) for row in about["frames"])
            file = PackedFile(int(about["size_bytes"]), int(about["width"]), frames)
            at = offset = 0
            for frame in frames:
                if (
                    (frame.at, frame.offset) != (at, offset)
                    or not 0 < frame.size_bytes <= FRAME_BYTES
                    or not 0 < frame.stored_bytes <= 2 * FRAME_BYTES
                ):
                    raise ValueError(name)
                at, offset = at + frame.stored_bytes, offset + frame.size_bytes
            if (
                offset != file.size_bytes
                or file.width not in WIDTHS
                or "/" in name
                or name in ("", ".", "..")
            ):
                raise ValueError(name)
            found[name] = file
        return found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BadInput(
            "not an index of a packed model", why="damaged or forged", fix="publish the model again"
        ) from None


def fetch(
    client: Client,
    url_of: Callable[[str], str],
    files: Mapping[str, tuple[PackedFile, int]],
    connections: int = 8,
) -> int:
    """Every file (name -> what the index says, an open descriptor) unpacked into its place, while
    others still come. Returns the bytes that crossed the link. Raises TransferError, or BadInput
    for bytes that are not those that were packed."""
    from labkit.net.parts import Into, RangePart
    from labkit.net.ranges import fetch_processed

    crc32 = _crc32()

    def unpack(part: RangePart) -> None:
        frame, width, fd, data = part.key
        raw = join(data, width, frame.size_bytes)
        if crc32(raw) != frame.crc32:
            raise BadInput(
                "a packed frame is damaged: its bytes are others than were packed",
                why="corrupted in the store",
                fix="publish the model again",
            )
        os.pwrite(fd, raw, frame.offset)

    def part_of(name: str, frame: Frame, width: int, fd: int) -> RangePart:
        data = bytearray(frame.stored_bytes)
        return RangePart(
            url_of(name),
            frame.at,
            frame.stored_bytes,
            key=(frame, width, fd, data),
            into=Into.buffer(data, -frame.at),
        )

    frames = [
        (name, frame, about.width, fd)
        for name, (about, fd) in files.items()
        for frame in about.frames
    ]
    parts = (part_of(*frame) for frame in frames)
    fetch_processed(client, parts, unpack, batch=BATCH, connections=connections)
    return sum(frame.stored_bytes for _, frame, _, _ in frames)


def know_libraries() -> None:
    """Before t0, as a node agent would. Nothing is asked for."""
    import numpy  # noqa: F401
    import zstandard  # noqa: F401


def _crc32() -> Callable[[Buffer], int]:
    from isal import isal_zlib

    return isal_zlib.crc32
