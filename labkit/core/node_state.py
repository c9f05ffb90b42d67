"""What a launch plan says of a node, and what a start's steps leave for each other: named fields.

    plan = replace(plan, state=replace(plan.state, rootfs="/…"))   # a technique's apply
    ctx.state.rootfs = str(target)                                 # a step: a later one reads it
    ctx.state.hand_on(download)                                    # one package's own, by its type
    ctx.state.handed(Download).wait()

Lesson: notebooks/01_anatomy."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import subprocess

T = TypeVar("T")

#: Lines of a server's output that are kept.
LOG_LINES = 400


@dataclass(frozen=True)
class WeightsState:
    """The checkpoint that the server loads. `model`: the directory or URL that it is given."""

    model: str = ""
    bytes: int = 0
    remote: bool = False  # it crosses the link
    store: str = ""  # the bucket outside of the lab that it comes from
    key: str = ""  # its key prefix in the bucket
    # on the host that prepared it: the files that are read, without links
    files: tuple[str, ...] = ()

    @staticmethod
    def from_json(doc: dict[str, Any]) -> WeightsState:
        return WeightsState(**{**doc, "files": tuple(doc.get("files", ()))})


@dataclass(frozen=True)
class PlanState:
    """What techniques know before t0 and their steps, or their evidence, need. JSON."""

    # where a fresh node finds things
    registry: str = ""  # base URL, "" when not served
    bucket: str = ""
    store: str = ""  # s3://bucket/prefix or gs://…
    image_reference: str = ""  # name:tag in the registry
    # an image that is on the node already
    rootfs: str = ""
    image_config: dict[str, Any] = field(default_factory=dict)  # OCI config
    lazy_image_bytes: int = 0  # of an image that is mounted lazily: all that it could have sent
    started_by: str = ""  # "module:function" that starts the server, where the image layer says it
    weights: WeightsState = field(default_factory=WeightsState)
    # compiled kernels
    compile_cache: str = ""
    compile_cache_files: dict[str, Any] = field(default_factory=dict)
    compile_cache_bytes: int | None = None
    # a snapshot
    snapshot_nonce: str | None = None
    snapshot_bytes: int = 0
    # least bytes that cross the link, by the path they are asked for
    snapshot_crossing: dict[str, int] = field(default_factory=dict)
    # what a resident process has mapped before t0: it cannot be cold
    resident_before_t0: tuple[str, ...] = ()

    @staticmethod
    def from_json(doc: dict[str, Any]) -> PlanState:
        return PlanState(
            **{
                **doc,
                "weights": WeightsState.from_json(doc.get("weights", {})),
                "resident_before_t0": tuple(doc.get("resident_before_t0", ())),
            }
        )


@dataclass
class NodeState:
    """What earlier steps left. Fields: what passes from one package to another. What steps of one
    package hand on to each other is kept by its type (`hand_on`, `handed`)."""

    registry: str = ""
    image_reference: str = ""
    rootfs: str = ""  # path of the unpacked or mounted image
    image_config: dict[str, Any] = field(default_factory=dict)  # OCI config
    server_pid: int = 0  # host pid of the server, set by the step that starts or restores it
    # set when the agent is its parent
    server_process: subprocess.Popen[bytes] | None = None
    # filled by whoever drains the server's pipe
    server_log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    # output lines that the server writes into a file of its own
    server_log_file: Iterable[str] = ()
    container: dict[str, str] = field(default_factory=dict)  # of runc: id, root, bundle
    # a file that appears when what the start needs first has come: what can wait leaves it the link
    link_free_when: str = ""
    snapshot_dir: str = ""  # a fresh node's copy of the snapshot
    moved: dict[str, str] = field(default_factory=dict)  # path at the dump -> path here
    _handed: dict[type, Any] = field(default_factory=dict)

    @staticmethod
    def of(plan: PlanState) -> NodeState:
        return NodeState(
            registry=plan.registry,
            image_reference=plan.image_reference,
            rootfs=plan.rootfs,
            image_config=dict(plan.image_config),
        )

    def log_tail(self, chars: int = 800) -> str:
        """The last of what the server put out, for an error's reason."""
        return "".join(self.log_lines())[-chars:]

    def log_lines(self) -> list[str]:
        return [*self.server_log, *self.server_log_file]

    def hand_on(self, value: object) -> None:
        self._handed[type(value)] = value

    def has(self, kind: type) -> bool:
        return kind in self._handed

    def handed(self, kind: type[T]) -> T:
        """What an earlier step handed on. Raises KeyError when none did."""
        found: T = self._handed[kind]
        return found

    def withdraw(self, kind: type[T]) -> T | None:
        """What was handed on, for the last time: nobody after this finds it. None: nothing was."""
        found: T | None = self._handed.pop(kind, None)
        return found
