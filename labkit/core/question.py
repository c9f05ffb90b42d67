"""What a record's numbers are the answer to: everything that was chosen for the run, in one place,
and what differs of it.

Two records are compared, pooled, resumed or ranked only where everything chosen was the same:
subject, stack by layer, scenario, link, store, device, time-out, request, environment, cache state,
host. What a run chose is written in its record, `experiment.conditions` (`chosen`);
`conditions_of` reads it back together with what every record holds. An older record holds less:
such a field is unknown, and unknown is said – it is neither equal nor different.

    found = differences(conditions_of(before, "naive"), conditions_of(after, "naive"))
    found.different    # ("link: 1gbit against 200mbit",)
    found.unknown      # ("timeout_s",): one of them does not tell it, or neither

What was made rather than chosen – the image's digest, versions of torch and kernel – may differ
between two records that are compared: that is what a comparison over time is for. Trials of one
record may not differ in it (`refuse_mixing`). Limit: the environment is looked at by name
(`RELEVANT`); a setting that the lab does not know of is not seen. Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.core import printable
from labkit.core.json_types import JsonMapping, JsonObject
from labkit.errors import BadInput, IncomparableRecords

if TYPE_CHECKING:
    from labkit.core.records import Run

#: Every field of `experiment.conditions`, in the order in which differences are named. A run that
#: chose nothing has the empty value.
CONDITIONS = (
    "preset",
    "model_dir",
    "model_identity",
    "image",
    "image_extra_bytes",
    "store",
    "command",
    "url",
    "server_args",
    "device",
    "timeout_s",
    "prompt",
    "max_tokens",
    "model_name",
    "at_t0",
    "instrument",
    "environment",
)
#: What older records told under these names, and what its absence meant there.
TOLD_BEFORE: JsonObject = {
    "preset": None,
    "model_dir": "",
    "max_tokens": None,
    "image_extra_bytes": 0,
    "store": "",
}
LAB_IMAGE = "the lab's subject"
#: What makes a size, and nothing else: a forecast is fitted over these.
SIZES = ("preset", "model_dir", "model_identity", "image_extra_bytes")
CACHE = "cache state"
#: Of one record's trials these are the same too.
MADE = ("image_digest", "seed", "lab_version", "host.torch", "host.python", "host.kernel")
#: How a loader builds its model where a stack names no technique of the layer `init`, as no record
#: did before there was one; of every other loader it is "meta".
INIT_OF_LOADER = {"pickle": "random"}
#: Environment that moves a measurement. Values of these are written down; names that look like a
#: secret's never are.
RELEVANT = re.compile(
    r"^(LABKIT_(SNAPSHOT_COMPRESSION|LAZY_PAGES|FAKE_CUDA)|RUNAI_STREAMER_\w+|CUDA_\w+|NVIDIA_VISIBLE_DEVICES|NCCL_\w+|OMP_\w+|MKL_\w+|OPENBLAS_NUM_THREADS"
    r"|TORCH\w*|PYTORCH_\w+|TRITON_\w+|SAFETENSORS_\w+|TENSORIZER_\w+|VLLM_\w+|SGLANG_\w+|LLAMA_\w+|GGML_\w+|TRANSFORMERS_\w+|HF_HUB_OFFLINE|MALLOC_\w+|LD_PRELOAD|GLIBC_TUNABLES"
    r"|PYTHON(OPTIMIZE|MALLOC|HASHSEED|NODEBUGRANGES|DONTWRITEBYTECODE)|AWS_(ENDPOINT_URL\w*|REGION|DEFAULT_REGION))$"
)
_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
_SHOWN = 80
_SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True)
class Found:
    """`different`: "field: one against other", each; `unknown`: fields that one of the two, or
    neither, tells."""

    different: tuple[str, ...]
    unknown: tuple[str, ...]


def chosen(**values: Any) -> JsonObject:
    """`experiment.conditions`: all fields, those not given at their empty value, and the
    environment as it is now."""
    foreign = set(values) - {*CONDITIONS, "image_digest"}
    if foreign:
        raise ValueError(f"no such condition: {', '.join(sorted(foreign))}")
    empty = dict.fromkeys(CONDITIONS, "") | {
        "image_extra_bytes": 0,
        "server_args": [],
        "instrument": True,
        "environment": environment(),
    }
    return {**empty, **values}


def environment(given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What of the environment moves a measurement, by name, without anything that may be a
    secret."""
    return {
        name: re.sub(r"//[^/@]*@", "//…@", value)[:400]
        for name, value in sorted(given.items())
        if RELEVANT.match(name) and not _SECRET.search(name)
    }


def digest(text: str) -> str:
    """Short digest of what is told apart but not written down, as a command line may hold a
    password; "" of nothing."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16] if text else ""


def identity(path: str | os.PathLike[str]) -> str:
    """What a model directory, or a single file, is, wherever it lies: names, sizes, small files
    whole, of large ones both ends and the middle.

    "" without a path. Reading gigabytes to name them would take as long as a trial; two models that
    differ only between those samples are not told apart."""
    if not str(path):
        return ""
    top, digest = Path(path).expanduser(), hashlib.sha256()
    files = (
        sorted(
            p
            for p in top.rglob("*")
            if p.is_file() and not any(part.startswith(".") for part in p.relative_to(top).parts)
        )
        if top.is_dir()
        else [top]
    )
    try:
        for file in files:
            size = file.stat().st_size
            digest.update(
                f"{file.relative_to(top) if file != top else file.suffix}\0{size}\0".encode(
                    "utf-8", "surrogatepass"
                )
            )
            with open(file, "rb") as data:
                for at in (
                    (0,) if size <= 3 * _SAMPLE_BYTES else (0, size // 2, size - _SAMPLE_BYTES)
                ):
                    data.seek(at)
                    digest.update(
                        data.read(3 * _SAMPLE_BYTES if size <= 3 * _SAMPLE_BYTES else _SAMPLE_BYTES)
                    )
    except OSError as error:
        raise BadInput(
            f"{error.filename or top}: {error.strerror}",
            why="a record names the model that it measured",
            fix="give a model directory that you may read",
        ) from None
    return digest.hexdigest()[:16] if files else ""


def conditions_of(run: Run, arm: str = "", strict: bool = False) -> JsonObject:
    """What is known of a run's question; with `arm`, of that arm's. `strict` adds what was made,
    for trials of one record."""
    conditions: JsonObject = run.experiment.get("conditions") or {}
    known: JsonObject = {
        "host": run.host.get("id"),
        "simulated": run.experiment.get("simulated", ""),
    }
    if arm:
        known |= _of_arm(run, arm)
    for name in CONDITIONS:
        if name in conditions:
            known[name] = conditions[name]
        elif name in TOLD_BEFORE:
            known[name] = run.experiment.get(name, TOLD_BEFORE[name])
    if not conditions:
        known |= _told_elsewhere(run)
    if not known.get("model_dir"):
        known["model_identity"] = ""  # the preset says it
    if strict:
        of_host = {f"host.{name}": run.host.get(name) for name in ("torch", "python", "kernel")}
        known |= {
            "image_digest": conditions.get("image_digest"),
            "seed": run.experiment.get("seed"),
            "lab_version": run.lab_version,
            **of_host,
        }
    if arm and run.arm_named(arm).get("stack", {}).get("image") == "host-env":
        # whatever other arms start from
        known |= {
            "image": "",
            "image_extra_bytes": 0,
            **({"image_digest": ""} if "image_digest" in conditions else {}),
        }
    return {name: value for name, value in known.items() if value is not None}


def _told_elsewhere(run: Run) -> JsonObject:
    """What a record without conditions told in other words: of a server of the lab's own, that it
    was none of the user's."""
    if any("server" in arm["stack"] for arm in run.arms):
        # its command is in the stack
        return {"image": (run.experiment.get("notes") or {}).get("image")}
    return {"image": LAB_IMAGE, "command": "", "url": "", "model_name": ""}


def _of_arm(run: Run, name: str) -> JsonObject:
    arm = run.arm_named(name)
    chosen: JsonObject = {"scenario": arm.get("scenario"), "link": arm.get("link")}
    chosen |= {
        f"stack.{layer}": technique
        for layer, technique in (arm.get("stack") or {}).items()
        if technique
    }
    if chosen.get("stack.init") == INIT_OF_LOADER.get(str(chosen.get("stack.weights")), "meta"):
        del chosen["stack.init"]  # what the loader does anyway
    states = sorted({t.cache.get("state", "unverified") for t in run.of_arm(name)})
    return chosen | ({CACHE: ", ".join(states)} if states else {})


def differences(one: JsonMapping, other: JsonMapping, but: Iterable[str] = ()) -> Found:
    """What differs of two questions, and what is not known of them; `but`: fields (or beginnings
    that end in a dot) left out of both."""
    left_out = tuple(but)
    different, unknown = [], []
    names = dict.fromkeys(
        (
            "host",
            "simulated",
            "scenario",
            "link",
            *(n for n in (*one, *other) if n.startswith("stack.")),
            *CONDITIONS,
            *(n for n in (CACHE, *MADE) if n in one or n in other),
        )
    )
    for name in names:
        if name in left_out or any(
            name.startswith(part) for part in left_out if part.endswith(".")
        ):
            continue
        if (
            name == "model_dir"
            and one.get("model_identity")
            and one.get("model_identity") == other.get("model_identity")
        ):
            continue  # the same model in another place
        here, there = one.get(name), other.get(name)
        if name.startswith("stack."):
            here, there = here or "none", there or "none"
        elif name == CACHE and (here is None or there is None):
            continue  # an arm without a good trial has none, and nothing of it is compared
        if name not in one and name not in other and name in MADE:
            continue
        if here is None or there is None:
            unknown.append(name)
        elif here != there:
            different.append(f"{name}: {_difference(here, there)}")
    return Found(tuple(different), tuple(unknown))


def _difference(here: Any, there: Any) -> str:
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        names = [n for n in dict.fromkeys((*here, *there)) if here.get(n) != there.get(n)]
        return ", ".join(
            f"{printable.line(n)} {shown(here.get(n, 'not set'))} against"
            f" {shown(there.get(n, 'not set'))}"
            for n in names
        )
    if isinstance(here, str) and isinstance(there, str) and max(len(here), len(there)) > _SHOWN:
        same = len(os.path.commonprefix([here, there]))  # noqa: RUF071 - of texts, not of paths
        here, there = (
            f"…{text[same - 20 :]}" if same > _SHOWN // 2 else text for text in (here, there)
        )
    return f"{shown(here)} against {shown(there)}"


def shown(value: Any) -> str:
    text = printable.line(
        value
        if isinstance(value, (str, int, float))
        else json.dumps(value, sort_keys=True, default=str)
    )
    return (text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…") or "none"


def key(question: JsonMapping, but: Iterable[str] = ()) -> tuple[tuple[str, str], ...]:
    """For grouping: equal where nothing differs and the same is unknown."""
    left_out = {*but, *(("model_dir",) if question.get("model_identity") else ())}
    return tuple(
        sorted(
            (name, json.dumps(value, sort_keys=True, default=str))
            for name, value in question.items()
            if name not in left_out
        )
    )


def comparable(a: Run, b: Run) -> tuple[str, ...]:
    """Names of what is unknown. Raises IncomparableRecords, naming every difference, unless both
    runs ask the same of the arms that they share."""
    common = [n for n in a.arm_names if n in b.arm_names]
    found = [(name, differences(conditions_of(a, name), conditions_of(b, name))) for name in common]
    if not common:
        found = [("", differences(_of_all(a), _of_all(b), but=("stack.",)))]
    every = dict.fromkeys(difference for _, one in found for difference in one.different)
    different = [d for d in every if all(d in one.different for _, one in found)]
    of_all = set(different)
    for name, one in found:
        of_one = [d for d in one.different if d not in of_all]
        different += [f"{printable.line(name)}: {d}" for d in of_one]
    if different:
        raise IncomparableRecords(
            "these runs do not measure the same thing: " + "; ".join(different),
            why="a difference between them would not be the technique's",
            fix="run both arms in one experiment: labkit run A B --blocks 5",
        )
    return tuple(dict.fromkeys(name for _, one in found for name in one.unknown))


def _of_all(run: Run) -> JsonObject:
    """Of all arms at once, where two runs share none."""
    both = {
        word: ", ".join(sorted({str(a.get(word, "")) for a in run.arms}))
        for word in ("scenario", "link")
    }
    return {**conditions_of(run), **both}


def same_start(run: Run, arm: str, against: str) -> None:
    """Raises IncomparableRecords unless two arms of one run differ in nothing but their stack."""
    if found := not_from_one_start(run, arm, against):
        raise IncomparableRecords(
            f"{printable.line(arm)} and {printable.line(against)} do not start from the same state:"
            f" {found}",
            why="arms are compared only within one scenario",
            fix="give both arms one --scenario and one --link",
        )


def not_from_one_start(run: Run, arm: str, against: str) -> str:
    """What two arms of one run differ in besides their stack, or "". An arm without an image
    differs in its stack."""
    return "; ".join(
        differences(
            conditions_of(run, arm),
            conditions_of(run, against),
            but=("stack.", "image", "image_extra_bytes"),
        ).different
    )


def refuse_mixing(before: Run, now: Run, where: str | os.PathLike[str]) -> None:
    """Raises BadInput unless trials of `now` may stand in the record `before`: the same question,
    host and making of all that both know."""
    fix = "give another --out, or the same options as before"
    names = [n for n in now.arm_names if n in before.arm_names]
    pairs = [
        (conditions_of(before, n, strict=True), conditions_of(now, n, strict=True)) for n in names
    ] or [(_of_all(before), _of_all(now))]
    # The image is made after this has been asked for the first time; then it is asked once more.
    found = [
        differences(
            a,
            b,
            but=(
                *(() if names else ("stack.",)),
                *(() if "image_digest" in b else ("image_digest",)),
            ),
        )
        for a, b in pairs
    ]
    place = printable.line(where)
    if different := list(dict.fromkeys(d for one in found for d in one.different)):
        raise BadInput(
            f"{place} holds another experiment: " + "; ".join(different),
            why="its trials would be mixed with different ones",
            fix=fix,
        )
    if unknown := list(dict.fromkeys(name for one in found for name in one.unknown)):
        raise BadInput(
            f"{place} does not tell its {', '.join(unknown)}",
            why=(
                "it is of an older labkit: whether its trials are the same cannot be known, so none"
                " is added to it"
            ),
            fix="give another --out",
        )


def said_unknown(unknown: Iterable[str]) -> str:
    """A sentence, or ""."""
    names = ", ".join(dict.fromkeys(unknown))
    return f"not told by every record, so not known to be the same: {names}" if names else ""
