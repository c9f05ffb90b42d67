"""`labkit bench load --from s3` and `--store`: the same measurement of every loader, the weights in
a bucket.

    labkit bench load --preset 1b --from s3 --link 4gbit-bucket      # embedded store; floor: the
        emulated link's own
    labkit bench load --preset 1b --store s3://my-bucket/lab         # a bucket outside of the lab;
        no floor is known

Evidence is what the embedded store counted, or what this host's interfaces received. Lesson:
notebooks/05_streaming."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

from labkit.bench.engine import Measured, interleave
from labkit.bench.load_child import measure, measured
from labkit.bench.load_results import OURS, agreed, best_other
from labkit.core import cold, observe, rates
from labkit.core.beside import scratch
from labkit.core.ledger import Ledger
from labkit.core.workspace import Workspace
from labkit.net import link as links
from labkit.net.serving import serving
from labkit.objects.publish import publish_model, upload_model
from labkit.technique import Subject
from labkit.weights.catalog import LOADERS, Loader
from labkit.weights.prepared import weights_bytes

FAULTS = ("503:rate=0.005,retry_after=0.05", "reset:rate=0.005", "straggler:nth=40,slowed_to=1MB/s")


def from_bucket(
    args: argparse.Namespace,
    names: list[str],
    subject: Subject,
    workspace: Workspace,
    ledger: Ledger,
) -> dict[str, Any]:
    """The embedded store on an emulated link: every loader clean, ours with faults too."""
    root = workspace.artifacts / "store-root"
    root.mkdir(exist_ok=True)
    key = f"models/bench-{args.preset}"
    publish_model(root, subject.model_dir, key)
    link = links.parse(args.link)
    with serving("store", root, link=link, ledger=ledger) as served:
        # the store is the network's other end: its disk is not what is measured
        cold.warm([subject.model_dir])
        size = weights_bytes(subject.model_dir)
        floor_s = (
            link.floor_s(size, 10**6)
            if link.shaped
            else size / rates.loopback()["loopback_bytes_per_s"]
        )
        arms: dict[str, Any] = {}
        for name in names:
            missing = LOADERS[name].missing()
            arms[f"{name}.s3"] = missing or _bucket_arm(
                args, LOADERS[name], served, key, size, floor_s, link.label, ()
            )
        if OURS in names:
            arms[f"{OURS}+faults.s3"] = _bucket_arm(
                args,
                LOADERS[OURS],
                served,
                key,
                size,
                floor_s,
                link.label + ", 1 % faults and a straggler",
                FAULTS,
            )
        results = agreed(interleave(arms, args.blocks, args.seed, getattr(args, "progress", None)))
    ratios = {
        f"{OURS}_vs_floor.s3": (f"{OURS}.s3", "floor"),
        f"{OURS}_faulty_vs_clean.s3": (f"{OURS}+faults.s3", f"{OURS}.s3"),
    }
    best = best_other(results, "s3")
    if best:
        ratios[f"{OURS}_vs_best_other.s3"] = (f"{OURS}.s3", best)
    return {
        "results_raw": results,
        "ratios": ratios,
        "best_other": {"s3": best},
        "link": link.label,
        "faults": list(FAULTS),
    }


def _bucket_arm(
    args: argparse.Namespace,
    loader: Loader,
    served: Any,
    key: str,
    size: int,
    floor_s: float,
    label: str,
    faults: tuple[str, ...],
) -> Any:
    def arm() -> Measured:
        served.set_faults(faults, seed=args.seed)
        served.reset()
        try:
            with _scratch() as scratch:
                env = {
                    **served.env,
                    "AWS_ENDPOINT_URL": served.url,
                    "AWS_EC2_METADATA_DISABLED": "true",
                    "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
                    "AWS_REGION": "us-east-1",
                    "AWS_DEFAULT_REGION": "us-east-1",
                    "TMPDIR": scratch,
                }
                doc = measure(
                    loader,
                    f"s3://lab/{key}",
                    f"s3://lab/{key}",
                    args.device,
                    size,
                    env,
                    {"remote": True, "key": key},
                    stores=lambda: {"bucket": served.stats()},
                )
        finally:
            served.set_faults(())
        return measured(doc, "remote", size, floor_s, label)

    return arm


def from_store(
    args: argparse.Namespace,
    names: list[str],
    subject: Subject,
    workspace: Workspace,
    ledger: Ledger,
) -> dict[str, Any]:
    """A bucket outside of the lab: it counts nothing for us, so the evidence is what this host's
    interfaces received."""
    store, size = args.store.rstrip("/"), weights_bytes(subject.model_dir)
    key = f"models/bench-{args.preset}"
    upload_model(store, subject.model_dir, key)
    arms = {
        f"{name}.store": (
            LOADERS[name].missing() or _store_arm(args, LOADERS[name], store, key, size)
        )
        for name in names
    }
    results = agreed(interleave(arms, args.blocks, args.seed, getattr(args, "progress", None)))
    best = best_other(results, "store")
    ratios = {f"{OURS}_vs_best_other.store": (f"{OURS}.store", best)} if best else {}
    return {
        "results_raw": results,
        "ratios": ratios,
        "best_other": {"store": best},
        "link": f"{store}, not emulated",
    }


def _store_arm(args: argparse.Namespace, loader: Loader, store: str, key: str, size: int) -> Any:
    def arm() -> Measured:
        before = observe.received_bytes()
        with _scratch() as scratch:
            doc = measure(
                loader,
                f"{store}/{key}",
                f"{store}/{key}",
                args.device,
                size,
                {"TMPDIR": scratch},
                {"remote": True, "key": key, "store": store},
                stores=lambda: {"bucket": {"bytes_sent": observe.received_bytes() - before}},
            )
        return measured(doc, "remote", size, None, f"{store}, not emulated")

    return arm


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """Where download-then-load puts its files: this host's disk, gone afterwards."""
    with scratch("bench-", Workspace.default().nodes) as directory:
        yield str(directory)
