"""eStargz of the same image: ours against the reference tool's, the same bytes, caches warm for
both.

    labkit bench convert --blocks 3
    labkit bench convert --image tiny --blocks 1

`ctr-remote images convert --estargz` (level 9, its default) is timed without the trace that
`optimize` would add, in a private containerd that already holds the image; ours is timed from
layout to layout. Goals: `convert_vs_ctr-remote` ≤ 0.1, `size_vs_ctr-remote` ≤ 1.05. Limit: the
codec on all cores. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path

from labkit.bench import pull_rivals as rivals
from labkit.bench.engine import Arm, Measured, document, interleave
from labkit.bench.pull_setup import image_of
from labkit.core.arguments import count
from labkit.core.beside import scratch
from labkit.core.json_types import JsonObject
from labkit.core.ledger import Ledger
from labkit.core.workspace import Workspace
from labkit.errors import LabError
from labkit.image.containerd import running
from labkit.image.estargz import layout
from labkit.image.estargz.convert import convert
from labkit.image.estargz.layer_cache import Options
from labkit.image.oci_layout import Layout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image", default="subject", help="subject (built when missing), tiny, or an OCI layout"
    )
    parser.add_argument(
        "--chunk-size",
        type=count("--chunk-size", 4096, 1 << 30),
        default=layout.CHUNK_BYTES,
        help="bytes of a chunk, for both tools (default 4 MiB)",
    )


def run(args: argparse.Namespace) -> JsonObject:
    space = Workspace.default()
    with Ledger.open(space) as ledger, ExitStack() as ends:
        folder = ends.enter_context(scratch("bench-convert-", space.artifacts))
        source, name = image_of(args.image, space, folder, tiny_bytes=3_000_000)
        size_bytes = source.manifest_with_layers(name).layers_bytes

        def ours() -> Measured:
            with scratch("out-", folder) as out:
                converted = convert(
                    source, name, Layout.create(out), options=Options(args.chunk_size)
                )
                return Measured(
                    converted.convert_s,
                    "warm",
                    "local",
                    evidence=f"{converted.size_bytes / 1e6:.1f} MB",
                    extra={"size_bytes": converted.size_bytes},
                )

        arms: dict[str, Arm | str] = {
            "estargz": ours,
            "ctr-remote": rivals.missing("containerd", "ctr-remote", "skopeo"),
        }
        if not arms["ctr-remote"]:
            arms["ctr-remote"] = _reference(ends, ledger, folder, source, name, args.chunk_size)
        results = interleave(arms, args.blocks, args.seed)
        report = document(
            "convert",
            results,
            {"convert_vs_ctr-remote": ("estargz", "ctr-remote")},
            image=args.image,
            source_bytes=size_bytes,
        )
    sizes = [
        [m.extra["size_bytes"] for m in rows if not m.failed]
        for rows in results.values()
        if isinstance(rows, list)
    ]
    size_ratio: JsonObject = {"missing": "estargz or ctr-remote did not run here"}
    if len(sizes) == 2 and all(sizes):
        ratio = sizes[0][0] / sizes[1][0]  # both are deterministic: one value, no interval
        size_ratio = {"median": ratio, "low": ratio, "high": ratio, "significant": True}
    report["ratios"]["size_vs_ctr-remote"] = size_ratio
    return report


def _reference(
    ends: ExitStack, ledger: Ledger, folder: Path, source: Layout, name: str, chunk_bytes: int
) -> Arm:
    """The reference tool on a private containerd that holds the image already."""
    node = ends.enter_context(running(folder / "containerd", ledger))
    image = "localhost/" + name
    archive = folder / "image.tar"
    rivals.skopeo_copy(f"oci:{source.path}:{name}", f"oci-archive:{archive}:{image}")
    node.ctr(
        "images",
        "import",
        "--no-unpack",
        "--base-name",
        "localhost/lab",
        str(archive),
        timeout_s=1800,
    )
    archive.unlink()
    listed = node.ctr("images", "ls", "-q").split()
    count = 0

    def theirs() -> Measured:
        nonlocal count
        count += 1
        target = f"localhost/lab/estargz:{count}"
        began_s = time.monotonic()
        node.ctr(
            "images",
            "convert",
            "--estargz",
            "--estargz-chunk-size",
            str(chunk_bytes),
            "--oci",
            listed[0],
            target,
            program="ctr-remote",
            timeout_s=1800,
        )
        spent_s = time.monotonic() - began_s
        doc = node.ctr("images", "ls", f"name=={target}")
        digest = next((w for w in doc.split() if w.startswith("sha256:")), "")
        manifest = node.manifest(digest, target)
        if not all(layout.TOC_DIGEST in layer.annotations for layer in manifest.layers):
            raise LabError(
                "ctr-remote wrote layers without a TOC digest", why="it did not convert them"
            )
        node.ctr("images", "rm", "--sync", target)
        return Measured(
            spent_s,
            "warm",
            "local",
            evidence=f"{manifest.layers_bytes / 1e6:.1f} MB",
            extra={"size_bytes": manifest.layers_bytes},
        )

    return theirs
