"""The reference server: from exec to the first token, each phase of it under a span.

    python -m labkit.subject.server --model DIR --port 8000
    python -m labkit.subject.server --model s3://lab/models/1b-safetensors --loader MODULE:FUNCTION
        --init meta --port 8000

Phases: `import` (first line of this file until torch and the rest are in) → `context` (the device)
→ `build` (config, tokenizer, model: on meta, or randomly initialised as torch does it) → `load`
(the loader's import is part of it) → `warmup` → `ready` (socket listening, health 200). Spans go to
the file named by LABKIT_TIMELINE; nothing is imported that the phases do not need. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

import time

# before every other import: `import` is measured from here
_FIRST_LINE_S = time.clock_gettime(time.CLOCK_MONOTONIC)

import argparse  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

from labkit.core import timeline  # noqa: E402
from labkit.core.json_types import JsonObject  # noqa: E402
from labkit.errors import BadInput, LabError, MissingCapability  # noqa: E402

if TYPE_CHECKING:
    from labkit.subject.engine import Engine
    from labkit.subject.http import ModelServer
    from labkit.subject.llama import Llama
    from labkit.subject.tokenizer import Tokenizer

PLAIN = "labkit.subject.plain:load"


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m labkit.subject.server",
        description="Reference inference server: OpenAI's completions from a Llama-family model.",
    )
    command.add_argument(
        "--model",
        required=True,
        metavar="DIR|URL",
        help="model directory, http(s)://… or s3://bucket/prefix",
    )
    command.add_argument(
        "--loader",
        default=PLAIN,
        metavar="MODULE:FUNCTION",
        help=f"puts the weights in their place (default {PLAIN})",
    )
    command.add_argument(
        "--loader-options", default="{}", metavar="JSON", help="keyword arguments of the loader"
    )
    command.add_argument(
        "--init",
        choices=["random", "meta"],
        default="meta",
        help=(
            "random: torch's own initialisation, then overwritten (the naive way); meta: nothing is"
            " allocated before the load"
        ),
    )
    command.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    command.add_argument(
        "--dtype",
        choices=["bfloat16", "float16", "float32"],
        default=None,
        help="default: the config's",
    )
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: this host only; there is no login)",
    )
    command.add_argument("--port", type=int, default=8000, help="0 takes a free one and says which")
    command.add_argument(
        "--warmup",
        type=int,
        default=None,
        metavar="TOKENS",
        help=(
            "tokens made before the server is ready (default 2: one prefill, one decode; 5 with"
            " --compile: a CUDA graph is recorded on the second decode)"
        ),
    )
    command.add_argument(
        "--max-context", type=int, default=1024, metavar="TOKENS", help="length of the KV cache"
    )
    command.add_argument(
        "--threads", type=int, default=0, help="CPU threads (default: torch's choice)"
    )
    command.add_argument(
        "--attention",
        choices=["flash", "default"],
        default=None,
        help=(
            "on a GPU: flash (default) asks cuDNN last, as it builds a plan for every new shape;"
            " default is torch's own order"
        ),
    )
    command.add_argument("--compile", action="store_true", help="torch.compile the decode step")
    command.add_argument(
        "--graphs",
        default="",
        metavar="N,…",
        help=(
            "record CUDA graphs of the decode step for these batch sizes before the server is ready"
            " (needs a GPU)"
        ),
    )
    command.add_argument(
        "--prefault", action="store_true", help="touch every page of the weights within `load`"
    )
    command.add_argument(
        "--early-bind", action="store_true", help="listen at once and answer 503 until ready"
    )
    command.add_argument("--name", default="", help="the model's name in answers")
    return command


class State:
    """What the handlers see. `engine` appears when a token can be served."""

    def __init__(self, name: str):
        self.name = name
        self.engine: Engine | None = None
        self.started_unix_s = time.time()
        self.nonce = os.urandom(16).hex()

    def identity(self) -> JsonObject:
        engine = self.engine
        return {
            "pid": os.getpid(),
            "nonce": self.nonce,
            "start_monotonic_s": _FIRST_LINE_S,
            "model": self.name,
            "ready": engine is not None,
            "reseeded": engine.reseeded if engine else 0,
        }


def make_context(device: str, threads: int) -> JsonObject:
    """The device's own start. On a GPU the driver makes a context, loads kernels and allocates; on
    a CPU a thread pool."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise MissingCapability(
                "no CUDA device",
                why="--device cuda was asked for",
                fix="labkit doctor; or --device cpu",
            )
        torch.cuda.init()
        torch.cuda.set_device(torch.device(device).index or 0)
        torch.ones(8, 8, device=device).matmul(torch.ones(8, 8, device=device))
        torch.cuda.synchronize()
        return {"device": torch.cuda.get_device_name(device)}
    if device != "cpu":
        raise BadInput(f"--device {device}", fix="cpu, cuda or cuda:N")
    torch.ones(8, 8).matmul(torch.ones(8, 8))
    return {"device": "cpu", "threads": torch.get_num_threads()}


def build(args: argparse.Namespace) -> tuple[Llama, Tokenizer]:
    """Config, tokenizer, model."""
    import torch

    from labkit.subject.config import LlamaConfig
    from labkit.subject.llama import Llama
    from labkit.subject.tokenizer import Tokenizer

    config = LlamaConfig.from_dir(args.model)
    with timeline.span("build.tokenizer"):
        tokenizer = Tokenizer.from_dir(args.model)
    if tokenizer.size > config.vocab_size + 4096:
        raise BadInput(
            f"{args.model}: tokenizer.json has {tokenizer.size} tokens, config.json"
            f" {config.vocab_size}",
            why="they are not of the same model",
            fix="fetch both again",
        )
    dtype = getattr(torch, args.dtype or config.dtype)
    if args.init == "meta":
        with torch.device("meta"):
            return Llama(config, dtype), tokenizer
    model = Llama(config, dtype)
    return (model.to(args.device) if args.device != "cpu" else model), tokenizer


def load(model: Llama, args: argparse.Namespace) -> JsonObject:
    """Call the loader, then check that nothing was left out."""
    import torch

    from labkit.subject.llama import CUDNN_LAST, prefer_flash

    if args.attention:
        os.environ[CUDNN_LAST] = "0" if args.attention == "default" else "1"
    module, _, function = args.loader.partition(":")
    try:
        options = json.loads(args.loader_options)
        if not isinstance(options, dict):
            raise ValueError(options)
    except ValueError:
        raise BadInput(
            f"--loader-options {args.loader_options!r:.200}", fix='a JSON object: {"threads": 4}'
        ) from None
    try:
        with timeline.span("load.import"):
            loader = getattr(importlib.import_module(module), function or "load")
    except (ImportError, AttributeError) as error:
        raise BadInput(
            f"--loader {args.loader}: {error}",
            why="the weights have no way in",
            fix="MODULE:FUNCTION, importable here",
        ) from None
    facts = dict(loader(model, args.model, args.device, **options) or {})
    model.finish(min(args.max_context, model.config.max_position_embeddings))
    wrong = next(
        (n for n, p in model.named_parameters() if p.device.type != torch.device(args.device).type),
        None,
    )
    if wrong:
        raise BadInput(
            f"--loader {args.loader} left {wrong} on another device than {args.device}",
            fix="this loader does not do that device",
        )
    if args.prefault:
        with timeline.span("load.prefault"):
            facts["prefaulted_bytes"] = prefault(model)
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()
        facts |= model.placement() | {"attention": prefer_flash()}
    return {k: v for k, v in facts.items() if isinstance(v, (int, float, str, bool))}


def prefault(model: Llama) -> int:
    """Read one byte of every page of the weights, so that a mapped file's faults are paid here and
    not by the first request."""
    import torch

    touched = 0
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            flat = parameter.detach().contiguous().view(torch.uint8).reshape(-1)
            flat[::4096].max()
            touched += flat.numel()
    return touched


def make_engine(args: argparse.Namespace, model: Llama, tokenizer: Tokenizer, name: str) -> Engine:
    from labkit.subject.engine import Engine

    sizes: tuple[int, ...] = ()
    if args.graphs:
        from labkit.subject.graphs import parse_sizes

        if args.compile:
            raise BadInput(
                "--graphs and --compile",
                why="torch.compile records its own graph on a GPU",
                fix="one of them",
            )
        sizes = parse_sizes(args.graphs)
    return Engine(
        model,
        tokenizer,
        max_context=min(args.max_context, model.config.max_position_embeddings),
        name=name,
        compiled=args.compile,
        graphs=sizes,
    )


def compiled() -> dict[str, int]:
    """What torch's compiler counted: graphs found in its cache and made anew, and CUDA graphs that
    it gave up."""
    from torch._dynamo.utils import counters

    inductor, whole = counters["inductor"], counters["aot_autograd"]
    return {
        "graphs_from_cache": max(inductor["fxgraph_cache_hit"], whole["autograd_cache_hit"]),
        "graphs_made_anew": inductor["fxgraph_cache_miss"],
        "cuda_graphs_given_up": inductor["cudagraph_skips"],
    }


def start(args: argparse.Namespace) -> tuple[Engine, State, ModelServer]:
    """Go through the phases. Returns the engine, its state, the listening server."""
    import tokenizers  # noqa: F401
    import torch  # noqa: F401

    from labkit.subject import engine as _engine  # noqa: F401
    from labkit.subject import http, llama  # noqa: F401
    from labkit.subject import tokenizer as _tokenizer  # noqa: F401

    timeline.write("import", _FIRST_LINE_S, timeline.now_s())
    state = State(args.name or os.path.basename(args.model.rstrip("/")))
    server = listen(args, state) if args.early_bind else None
    with timeline.span("context") as facts:
        facts.update(make_context(args.device, args.threads))
    with timeline.span("build", init=args.init):
        model, tokenizer = build(args)
    with timeline.span("load", loader=args.loader) as facts:
        facts.update(load(model, args))
    with timeline.span("warmup") as facts:
        engine = make_engine(args, model, tokenizer, state.name)
        enough = 5 if args.compile else 2
        facts["tokens"] = engine.warm_up(enough if args.warmup is None else args.warmup)
        facts.update(compiled() if args.compile else {})
    with timeline.span("ready"):
        state.engine = engine
        server = server or listen(args, state)
    return engine, state, server


def listen(args: argparse.Namespace, state: State) -> ModelServer:
    """Raises LabError where the server cannot listen there."""
    from labkit.subject.http import ModelServer

    server = ModelServer(args.host, args.port, state)
    server.start()
    return server


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _stop)
    try:
        engine, state, server = start(args)
        print(f"ready on {server.url} (model {state.name}, pid {os.getpid()})", flush=True)
        engine.serve_forever()
    except LabError as error:
        print(f"server: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


def _stop(_signal: int, _frame: object) -> None:
    # At once: the interpreter's and torch's own take-down would cost half a second and frees
    # nothing the kernel does not.
    os._exit(0)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
