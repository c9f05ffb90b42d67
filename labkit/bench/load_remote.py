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
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from labkit.bench.engine import Arm, Measured, interleave
from labkit.bench.load_child import LoadSpec, measure, measured
from labkit.bench.load_results import OURS, agreed, best_other
from labkit.core import cold, observe, rates
from labkit.core.beside import scratch
from labkit.core.json_types import JsonObject
from labkit.core.ledger import Ledger
from labkit.core.workspace import Workspace
from labkit.net import link as links
from labkit.net.serving import Served, serving
from labkit.objects.access import proxy_to
from labkit.objects.publish import publish_model, upload_model
from labkit.technique import Subject
from labkit.weights.catalog import LOADERS, Loader
from labkit.weights.prepared import checkpoint_in

FAULTS = ("503:rate=0.005,retry_after=0.05", "reset:rate=0.005", "straggler:nth=40,slowed_to=1MB/s")


def from_bucket(
    args: argparse.Namespace,
    names: list[str],
    subject: Subject,
    workspace: Workspace,
    ledger: Ledger,
) -> JsonObject:
    """The embedded store on an emulated link: every loader clean, ours with faults too."""
    root = workspace.artifacts / "store-root"
    root.mkdir(exist_ok=True)
    checkpoint = checkpoint_in("safetensors", subject, workspace)
    # of this content alone: what another model left under its name would be chosen from too
    key = f"models/bench-{args.preset}-{checkpoint.digest[:8]}"
    publish_model(root, checkpoint.directory, key)
    link = links.parse(args.link)
    with serving("store", root, link=link, ledger=ledger) as served:
        # the store is the network's other end: its disk is not what is measured
        cold.warm(checkpoint.files)
        size = checkpoint.weights_bytes
        floor_s = (
            link.floor_s(size, 10**6)
            if link.shaped
            else size / rates.loopback()["loopback_bytes_per_s"]
        )
        bucket = _Bucket(served, key, size, floor_s, link.label, args.seed)
        arms: dict[str, Arm | str] = {
            f"{name}.s3": LOADERS[name].missing()
            or partial(_from_bucket, bucket, LOADERS[name], args.device)
            for name in names
        }
        if OURS in names:
            faulty = replace(
                bucket, label=link.label + ", 1 % faults and a straggler", faults=FAULTS
            )
            arms[f"{OURS}+faults.s3"] = partial(_from_bucket, faulty, LOADERS[OURS], args.device)
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


@dataclass(frozen=True)
class _Bucket:
    """The embedded store, what of it is loaded, and how: what a trial names and sets."""

    served: Served
    key: str
    size_bytes: int
    floor_s: float
    label: str
    seed: int
    faults: tuple[str, ...] = ()


def _from_bucket(bucket: _Bucket, loader: Loader, device: str) -> Measured:
    served = bucket.served
    served.set_faults(bucket.faults, seed=bucket.seed)
    served.reset()
    try:
        doc = _measure(
            f"s3://lab/{bucket.key}",
            loader,
            device,
            bucket.size_bytes,
            {"remote": True, "key": bucket.key},
            served.stats,
            {
                **served.env,
                "AWS_ENDPOINT_URL": served.url,
                "AWS_EC2_METADATA_DISABLED": "true",
                "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
                "AWS_REGION": "us-east-1",
                "AWS_DEFAULT_REGION": "us-east-1",
            },
        )
    finally:
        served.set_faults(())
    return measured(doc, "remote", bucket.size_bytes, bucket.floor_s, bucket.label)


def _measure(
    url: str,
    loader: Loader,
    device: str,
    size_bytes: int,
    about: JsonObject,
    counted: Callable[[], JsonObject],
    env: dict[str, str],
) -> JsonObject:
    """One load of a bucket's weights. What download-then-load puts on this host's disk goes
    afterwards."""
    with scratch("bench-", Workspace.default().nodes) as directory:
        return measure(
            LoadSpec(
                loader=loader,
                model=url,
                weights_bytes=size_bytes,
                device=device,
                env={**env, "TMPDIR": str(directory)},
                about=about,
                stores=lambda: {"bucket": counted()},
            )
        )


def from_store(
    args: argparse.Namespace,
    names: list[str],
    subject: Subject,
    workspace: Workspace,
    ledger: Ledger,
) -> JsonObject:
    """A bucket outside of the lab: it counts nothing for us, so the evidence is what this host's
    interfaces received."""
    checkpoint = checkpoint_in("safetensors", subject, workspace)
    store, size = args.store.rstrip("/"), checkpoint.weights_bytes
    key = f"models/bench-{args.preset}-{checkpoint.digest[:8]}"
    upload_model(store, checkpoint.directory, key)
    arms: dict[str, Arm | str] = {
        f"{name}.store": LOADERS[name].missing()
        or partial(_from_store, store, key, LOADERS[name], args.device, size)
        for name in names
    }
    results = agreed(interleave(arms, args.blocks, args.seed, getattr(args, "progress", None)))
    best, proxy = best_other(results, "store"), proxy_to(store, os.environ)
    ratios = {f"{OURS}_vs_best_other.store": (f"{OURS}.store", best)} if best else {}
    return {
        "results_raw": results,
        "ratios": ratios,
        "best_other": {"store": best},
        "link": f"{store}, not emulated" + (f", through the proxy {proxy}" if proxy else ""),
    }


def _from_store(store: str, key: str, loader: Loader, device: str, size_bytes: int) -> Measured:
    before = observe.received_bytes()
    doc = _measure(
        f"{store}/{key}",
        loader,
        device,
        size_bytes,
        {"remote": True, "key": key, "store": store},
        lambda: {"bytes_sent": observe.received_bytes() - before},
        {},
    )
    return measured(doc, "remote", size_bytes, None, f"{store}, not emulated")
