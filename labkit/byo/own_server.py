"""A server that is not ours, as the user gave it: its command, where it answers, what it reads.

    OwnServer.of("python -m llama_cpp.server --model M.gguf", "http://127.0.0.1:8000", "M.gguf")

Lesson: notebooks/09_decide."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from labkit.byo import servers
from labkit.core import secrets
from labkit.errors import BadInput
from labkit.net.place import split


@dataclass(frozen=True)
class OwnServer:
    """What the user gave, checked."""

    argv: tuple[str, ...]
    host: str
    port: int
    base: str  # path before /completions, usually /v1
    weights: Path
    kind: servers.ServerKind
    image: str = ""
    model_name: str = ""

    @staticmethod
    def of(
        command: str, url: str, weights: str, image: str = "", model_name: str = ""
    ) -> OwnServer:
        """Raises BadInput for what cannot be measured."""
        secrets.learn_command(command)
        secrets.learn_command(url)
        try:
            argv = tuple(shlex.split(command))
        except ValueError as error:
            raise BadInput(
                f"--command: {error}", fix="quote it as the shell would take it"
            ) from None
        if not argv or not shutil.which(argv[0]):
            raise BadInput(
                f"--command: {secrets.mask_argv(argv)[0] if argv else 'nothing'} is not a program"
                " here",
                why="the server is started by it at t0",
                fix=(
                    "write env before the variables: env NAME=VALUE …"
                    if argv and "=" in argv[0]
                    else "give the full path, or install the server"
                ),
            )
        try:
            address, target = split(url)
        except ValueError:
            address, target = None, ""
        if address is None or address.scheme != "http":
            raise BadInput(
                f"--url {secrets.mask(url)!r}",
                why="the client asks there from t0 on",
                fix="--url http://127.0.0.1:8000, as the command serves it",
            )
        path = Path(weights).expanduser() if weights else None
        if path is None or not path.exists():
            raise BadInput(
                f"--weights {weights!r}: no such file or directory",
                why="its files are evicted before each trial, and watched in it",
                fix="give the directory (or file) that the server reads its weights from",
            )
        files = chain([path], path.rglob("*"))
        if not any(p.is_file() and p.stat().st_size for p in files):
            broken = next((p for p in path.rglob("*") if p.is_symlink() and not p.exists()), None)
            raise BadInput(
                f"--weights {weights!r}: no file with anything in it"
                + (f", and {broken.name} is a link to {os.readlink(broken)}" if broken else ""),
                why="with nothing to evict, every start would be called cold",
                fix="give the directory (or file) that the server reads its weights from",
            )
        base = target.partition("?")[0].rstrip("/")
        for endpoint in ("/completions", "/chat"):  # given as it is asked
            base = base.removesuffix(endpoint)
        return OwnServer(
            argv,
            address.host,
            address.port,
            base if base.endswith("/v1") else base + "/v1",
            path.resolve(),
            servers.recognise(argv),
            image,
            model_name,
        )
