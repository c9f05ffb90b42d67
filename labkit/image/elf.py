"""Which dynamic linker a program asks for.

    interpreter_of("/usr/bin/python3.11")        # "/lib64/ld-linux-x86-64.so.2"

Source: elf(5). Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import struct


def interpreter_of(program: str) -> str:
    """PT_INTERP of an ELF file (its dynamic linker); "" for anything else."""
    with open(program, "rb") as file:
        head = file.read(64)
        if head[:4] != b"\x7fELF" or head[4] != 2 or len(head) < 64:
            return ""
        (table,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        for i in range(min(count, 64)):
            file.seek(table + i * size)
            kind, _flags, offset, _v, _p, length = struct.unpack_from("<IIQQQQ", file.read(56))
            if kind == 3 and length < 4096:
                file.seek(offset)
                return file.read(length).rstrip(b"\0").decode(errors="surrogateescape")
    return ""
