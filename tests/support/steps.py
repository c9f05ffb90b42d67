"""Steps for the node agent that tests use in place of images and runtimes."""

import collections
import subprocess
import sys
import threading
from pathlib import Path

from labkit.errors import TransferError

SERVER = str(Path(__file__).with_name("tiny_server.py"))


def pull(ctx, size=1000):
    (ctx.node / "layer").write_bytes(b"x" * size)
    return {"bytes_fetched": size}


def fail(ctx):
    raise TransferError("the registry is gone", why="no bytes", fix="start it")


def start(ctx, mode="ok"):
    process = subprocess.Popen(
        [sys.executable, SERVER, str(ctx.port), mode],
        env=ctx.server_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log = collections.deque(maxlen=100)
    drain = threading.Thread(target=lambda: log.extend(process.stdout), daemon=True)
    drain.start()
    ctx.state.server_pid, ctx.state.server_process, ctx.state.server_log = (
        process.pid,
        process,
        log,
    )

    def end():
        process.kill()
        process.wait()

    ctx.on_stop(end)
    return {"pid": process.pid}


def start_and_linger(ctx, pause_s=0.5):
    """The server answers long before this step reports: as a start that is short and an agent that
    is busy."""
    import time

    facts = start(ctx)
    time.sleep(pause_s)
    return facts


def start_and_tell(ctx, said):
    """A server whose log quotes the key of its environment, and a step whose facts hold what it was
    told."""
    facts = start(ctx)
    ctx.state.server_log.append(f"my key is {ctx.server_env['MY_API_KEY']}")
    print(f"the agent says {said}", file=sys.stderr)
    return {**facts, "said": said}
