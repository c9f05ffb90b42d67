"""Two small experiments on a lazy mount, for notebooks: what one program touches, and when laziness
loses.

    # files and bytes that a program touches of an image on this disk
    touched = touch(layout, name, ["-c", "import torch"])
    # seconds to read a share of an image: mounted, and pulled whole
    doc = crossover(["200mbit", "1gbit"], shares=(0.05, 0.25, 1))

Both are measured here, through the mount's own process; where there is no FUSE they raise
MissingCapability. `crossover` reads the worst case on purpose: many small files, in random order,
nothing prefetched, so that every file costs a round trip. Limits: one round trip a file, against
bytes ÷ rate of the whole. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from labkit.core import capabilities
from labkit.core.beside import build_once, scratch
from labkit.core.json_types import JsonObject
from labkit.core.ledger import Ledger, marked
from labkit.core.workspace import Workspace
from labkit.errors import MissingCapability, TrialError
from labkit.image import access_record
from labkit.image.estargz import layout as shape
from labkit.image.estargz import reader
from labkit.image.estargz.convert import convert
from labkit.image.estargz.layer_cache import Options
from labkit.image.layers import LayerEntry, write_image, write_layer
from labkit.image.lazyfs import lone_mount
from labkit.image.lazyfs.lone_mount import LoneMount
from labkit.image.oci_layout import Layout
from labkit.image.publish import publish_image
from labkit.image.pull import pull_into
from labkit.image.runtimes.process import process_command
from labkit.image.unpack import unpack_image
from labkit.net.serving import serving

NAME = "lab/share:latest"
PROGRAM_S = 240.0  # a program has this long to run


def need_fuse() -> None:
    """Raises MissingCapability where this host cannot mount."""
    found = capabilities.capability("fuse")
    if not found.ok:
        raise MissingCapability(f"FUSE: {found.missing}", why=found.why, fix=found.fix)


def mounted(reference: str, *options: str) -> AbstractContextManager[LoneMount]:
    """`lone_mount.mounted` in the user's workspace. Raises MissingCapability."""
    need_fuse()
    return lone_mount.mounted(reference, *options, workspace=Workspace.default())


def run_from(reference: str, program: Sequence[str], *options: str) -> JsonObject:
    """Run the image's interpreter with `program` from a fresh lazy mount: {"mount_s", "run_s",
    "record", "stats"}."""
    with mounted(reference, *options) as mount:
        ctx = mount.ctx
        config = ctx.state.image_config
        python = (config["config"].get("Entrypoint") or config["config"].get("Cmd"))[0]
        config["config"] = {**config["config"], "Entrypoint": [python], "Cmd": None}
        ctx.server_args = list(program)
        argv, environment = process_command(ctx, ctx.state.rootfs)
        began_s = time.monotonic()
        done = subprocess.run(
            argv,
            env=marked(environment),
            capture_output=True,
            text=True,
            timeout=PROGRAM_S,
            cwd="/",
        )
        run_s = time.monotonic() - began_s
        if done.returncode:
            raise TrialError("the program did not run from the lazy mount", why=done.stderr[-1000:])
        record, counted = mount.end()
    return {
        "mount_s": mount.facts["mount_s"],
        "run_s": run_s,
        "record": [a.as_json() for a in record],
        "stats": counted,
    }


def touch(layout: Layout, name: str, program: Sequence[str]) -> JsonObject:
    """What `program` touches, in order, from an eStargz layout on this disk: `run_from`, and the
    image's own sizes.

    {…, "files": {path: [touched bytes, bytes present]}, "files_present", "bytes_present"}"""
    sizes: dict[str, int] = {}
    for layer in layout.manifest(name).layers:
        toc = reader.read_toc_of_file(
            layout.blob_path(layer.digest), layer.annotations[shape.TOC_DIGEST]
        )
        sizes |= {
            e.name: e.size for e in toc.entries if e.kind == "reg" and e.name not in shape.OWN_NAMES
        }
    result = run_from(
        f"oci:{layout.path}:{name}",
        program,
        "--no-background",
        "--no-prefetch",
        "--read-ahead-kb",
        "128",
    )
    files = {
        a["path"]: [sum(b - x for x, b in a["ranges"]), sizes.get(a["path"], 0)]
        for a in result["record"]
    }
    return {
        **result,
        "files": files,
        "files_present": len(sizes),
        "bytes_present": sum(sizes.values()),
    }


def lazy_image(parts: Sequence[str]) -> tuple[Layout, Layout, str]:
    """(image as built, the same as eStargz, its name): built once, kept in the workspace."""
    from labkit.image import build

    space = Workspace.default()
    if tuple(parts) == build.PARTS:
        path, name = build.ensure_image(space)
    else:
        path, name = space.images / "-".join(parts), build.REFERENCE
        build.build(path, parts=parts)
    plain = Layout(path)
    target = space.artifacts / f"esgz-{plain.manifest(name).digest[7:19]}"
    build_once(target, lambda part: convert(plain, name, Layout.create(part)))
    return plain, Layout(target), name


def optimised(plain: Layout, name: str, record: Sequence[JsonObject], root: Path) -> Layout:
    """The image once more, in the order of a record; written below `root`."""
    accesses = [access_record.Access.from_json(access) for access in record]
    target = Layout.create(root)
    convert(plain, name, target, record=accesses, options=Options(chunk_bytes=1 << 20))
    return target


def before_and_after(
    plain_lazy: Layout, tuned: Layout, name: str, program: Sequence[str], link: str
) -> dict[str, JsonObject]:
    """`run_from` over an emulated link, each image once, from empty caches of the mount: {"as
    converted", "optimised"}."""
    space = Workspace.default()
    with Ledger.open(space) as ledger, scratch("before-after-", space.artifacts) as folder:
        for layout, tag in ((plain_lazy, "as-converted"), (tuned, "optimised")):
            _publish(folder, layout, name, f"lab/image:{tag}")
        with serving("registry", folder, link=link, ledger=ledger) as served:
            return {
                tag.replace("-", " "): run_from(
                    f"{served.url}/lab/image:{tag}", program, "--no-background"
                )
                for tag in ("as-converted", "optimised")
            }


def _publish(root: Path, layout: Layout, name: str, under: str) -> None:
    with scratch(".publish-", layout.path.parent) as folder:
        other = Layout.create(folder / "layout")
        manifest = layout.manifest(name)
        for blob in layout.blobs(manifest):
            target = other.blob_path(blob.digest)
            if not target.exists():
                target.hardlink_to(layout.blob_path(blob.digest))
        other.add(manifest, under)
        publish_image(root, other.path, under)


def crossover(
    links: Sequence[str],
    shares: Sequence[float] = (0.02, 0.1, 0.3, 1.0),
    *,
    files: int = 150,
    file_bytes: int = 100_000,
) -> JsonObject:
    """{"rows": [{"link", "share", "lazy_s"}], "full": {link: seconds of pull + unpack}, "files",
    "bytes"}. Raises MissingCapability."""
    need_fuse()
    space = Workspace.default()
    names = [f"data/{i:04}" for i in range(files)]
    rows, full = [], {}
    with Ledger.open(space) as ledger, scratch("crossover-", space.artifacts) as base:
        plain = Layout.create(base / "plain")
        entries = {n: LayerEntry(data=random.Random(n).randbytes(file_bytes)) for n in names}
        write_image(plain, [("files", write_layer(plain, entries))], {"Env": []}, NAME)
        convert(plain, NAME, Layout.create(base / "lazy"))
        publish_image(base / "registry", base / "plain", NAME)
        publish_image(base / "registry", base / "lazy", "lab/share:lazy")
        order = random.Random(0).sample(names, len(names))
        for link in links:
            with serving("registry", base / "registry", link=link, ledger=ledger) as served:
                began_s = time.monotonic()
                into = Layout(base / f"content-{link}")
                manifest, _ = pull_into(into, f"{served.url}/{NAME}")
                unpack_image(into, manifest, base / f"tree-{link}", fetched=True)
                full[link] = time.monotonic() - began_s
                for share in shares:
                    began_s = time.monotonic()
                    with mounted(
                        f"{served.url}/lab/share:lazy", "--no-prefetch", "--no-background"
                    ) as mount:
                        ready_s = mount.facts["mount_s"]
                        rootfs = Path(mount.ctx.state.rootfs)
                        # the mount's process is resident on a node: its start is not counted
                        began_s = time.monotonic()
                        for name in order[: max(1, round(share * files))]:
                            (rootfs / name).read_bytes()
                        rows.append(
                            {
                                "link": link,
                                "share": share,
                                "lazy_s": ready_s + time.monotonic() - began_s,
                            }
                        )
    return {"rows": rows, "full": full, "files": files, "bytes": files * file_bytes}
