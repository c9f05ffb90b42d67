"""A lazy mount without a node agent: for the recorded start of `estargz-lazy`, and for experiments.

    with mounted("oci:/path/to/layout:lab/subject:esgz", workspace=workspace) as mount:
        (Path(mount.ctx.state.rootfs) / "etc/passwd").read_bytes()
        record, counters = mount.end()

Limit: that of the mount. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from labkit.core.beside import scratch
from labkit.core.json_types import JsonObject
from labkit.core.ledger import Ledger
from labkit.core.plan import StepContext
from labkit.core.workspace import Workspace
from labkit.image import access_record
from labkit.image.lazyfs import stats
from labkit.image.lazyfs.step import mount_image


@dataclass
class LoneMount:
    """The mount, and the context in which a server can be started from it."""

    ctx: StepContext
    facts: JsonObject = field(default_factory=dict)

    def end(self) -> tuple[list[access_record.Access], JsonObject]:
        """End what runs from it, unmount, and return what was touched, in order, and the mount's
        counters."""
        self.stop()
        record = access_record.read(self.ctx.node / "record")
        return record, stats.read(self.ctx.node / "lazyfs.json")

    def stop(self) -> None:
        while self.ctx._ends:
            self.ctx._ends.pop()()


@contextmanager
def mounted(reference: str, *options: str, workspace: Workspace) -> Iterator[LoneMount]:
    """Mount on a node of its own, for the length of a block."""
    with Ledger.open(workspace) as ledger, scratch("lazy-", workspace.nodes) as node:
        ctx = StepContext(
            node=node,
            port=0,
            timeline_path=node / "timeline",
            ledger=ledger,
            server_args=[],
            server_env={},
            server_binds=[],
        )
        mount = LoneMount(ctx)
        try:
            mount.facts = mount_image(ctx, reference, ["--record", f"{node}/record", *options])
            yield mount
        finally:
            mount.stop()
