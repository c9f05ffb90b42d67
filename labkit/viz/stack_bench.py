"""Choose a stack, predict, run, watch its phases arrive – with widgets in JupyterLab, with plain
calls everywhere else.

    bench = StackBench(preset="small", link="1gbit")        # shows itself as the last expression of
        a cell
    bench.choose(weights="safetensors"); bench.guess(4.5); bench.run()     # the same without a
        mouse, or headless
    bench.text                                              # everything it shows, in words

One trial is an anecdote, and the bench says so. Lesson: notebooks/08_stacking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from labkit.core.records import Run
from labkit.core.units import show_s
from labkit.errors import BadInput, LabError
from labkit.technique import LAYERS
from labkit.viz import captions
from labkit.viz.bench import Bench, View, guess_words
from labkit.viz.growing import Growing
from labkit.viz.theme import Picture

_NONE = "(none)"


@dataclass(frozen=True)
class Option:
    """One technique of a layer in the menu. `missing`: why it cannot run here, "" when it can."""

    name: str
    title: str
    missing: str = ""

    @property
    def label(self) -> str:
        name = self.name or _NONE
        if self.missing:
            return f"{name} – not here: {self.missing}"
        return f"{name} – {self.title}" if self.title else name


@dataclass(frozen=True)
class Attempt:
    """What one press of Run gave."""

    guess_s: float | None
    run: Run


def menu(scenario: str = "fresh-node") -> dict[str, list[Option]]:
    """Techniques by layer; those that this host lacks carry the reason."""
    from labkit.core import host
    from labkit.technique import techniques

    card, layers = host.card(), {}
    for layer in LAYERS:
        options = []
        if layer in ("init", "device", "snapshot"):
            options.append(Option("", "nothing in this layer"))
        for t in techniques(layer):
            found = t.available(card)
            missing = "" if found.ok else found.missing
            if scenario in t.excluded_scenarios:
                missing = f"means nothing on a {scenario}"
            options.append(Option(t.name, t.title, missing))
        layers[layer] = sorted(options, key=lambda o: bool(o.missing))
    return layers


class StackBench(Bench[Attempt]):
    """A bench for one stack at a time. `recorded`: answer from a run's arms instead of measuring,
    stamped as such."""

    title = "Chosen"
    _view: _View | None

    def __init__(
        self,
        *,
        preset: str = "small",
        scenario: str = "fresh-node",
        link: str = "loopback",
        blocks: int = 1,
        recorded: Run | None = None,
        start: str = "naive",
    ):
        from labkit.core import host
        from labkit.stack import Stack

        super().__init__()
        self.preset, self.scenario, self.link = preset, scenario, link
        self.blocks, self.recorded = blocks, recorded
        self.menu = menu(scenario)
        self.stack: dict[str, str] = dict.fromkeys(LAYERS, "") | dict(
            Stack.parse(start).resolved(host.card()).layers
        )

    def choose(self, **layers: str) -> StackBench:
        """One technique for some layers: `choose(image="estargz-lazy")`. Raises BadInput with the
        choices, or why one is not here."""
        for layer, name in layers.items():
            options = {o.name: o for o in self.menu.get(layer, [])}
            if name not in options:
                raise BadInput(
                    f"no technique {name!r} in layer {layer!r}",
                    fix=(
                        "one of: " + ", ".join(n or '""' for n in options)
                        if options
                        else f"layers: {', '.join(LAYERS)}"
                    ),
                )
            if options[name].missing and not self.recorded:
                raise BadInput(
                    f"{name} is not available here: {options[name].missing}", fix="labkit doctor"
                )
            self.stack[layer] = name
        if self._view:
            self._view.show_choice()
        return self

    def run(self) -> Run:
        """Measure the chosen stack (or look it up in `recorded`) and show it. Raises LabError where
        the combination means nothing."""
        run = self._looked_up(self.recorded) if self.recorded else self._measured()
        self._add(Attempt(self.guess_s, run))
        return run

    def _measured(self) -> Run:
        from labkit.stack import Stack, experiment

        changed = ",".join(f"{layer}={name}" for layer, name in self.stack.items())
        stack = Stack(self._short_name(), dict(Stack.parse(changed).layers))
        return experiment(
            [stack],
            preset=self.preset,
            blocks=self.blocks,
            scenario=self.scenario,
            link=self.link,
            progress=Growing(self._view),
        )

    def _short_name(self) -> str:
        from labkit.core import host
        from labkit.stack import Stack

        naive = Stack.parse("naive").resolved(host.card()).layers
        changed = [
            name or f"no {layer}"
            for layer, name in self.stack.items()
            if name != naive.get(layer, "")
        ]
        return " + ".join(changed) or "naive"

    def _looked_up(self, recorded: Run) -> Run:
        from dataclasses import replace

        from labkit.stack import replay

        arms = recorded.experiment.get("arms", [])
        for arm in arms:
            if _told_apart(arm["stack"]) == _told_apart(self.stack):
                part = replace(
                    recorded,
                    trials=tuple(recorded.of_arm(arm["name"], only_ok=False)),
                    experiment={**recorded.experiment, "arms": [arm]},
                )
                return part if captions.replayed_from(part) else replay.marked(part)
        raise BadInput(
            "this combination was not recorded",
            why="nothing is made up here",
            fix=f"one of: {'; '.join(arm['name'] for arm in arms)}",
        )

    def settings(self) -> str:
        return ", ".join(f"{layer} {name or _NONE}" for layer, name in self.stack.items())

    def page_settings(self) -> str:
        return ", ".join(f"{layer}: {name or _NONE}" for layer, name in self.stack.items())

    def name(self, attempt: Attempt) -> str:
        return attempt.run.arm_names[0]

    def verdict(self, attempt: Attempt) -> str:
        from labkit.core import stats

        times = _times(attempt.run)
        if not times:
            return "failed: " + ", ".join(sorted({t.outcome for t in attempt.run.trials}))
        took_s = stats.median(times)
        anecdote = ": one trial is an anecdote" if len(times) == 1 else ""
        guess = guess_words(took_s, attempt.guess_s)
        return f"{show_s(took_s)} ({guess}); n = {len(times)}{anecdote}"

    def figure(self) -> Picture | None:
        from labkit.viz.waterfall import waterfall

        done = [a.run for a in self.attempts if _times(a.run)]
        return waterfall(done[-1]) if done else None

    def _widgets(self) -> _View:
        return _View(self)


def _told_apart(stack: Mapping[str, str]) -> dict[str, str]:
    """What tells recorded stacks apart: their techniques, but for the process."""
    return {layer: name for layer, name in stack.items() if name and layer != "process"}


def _times(run: Run) -> list[float]:
    return [t.total_s for name in run.arm_names for t in run.of_arm(name) if t.total_s]


class _View(View):
    """A menu a layer, a field for the guess, and bars that grow."""

    bench: StackBench

    def __init__(self, bench: StackBench):
        import ipywidgets as w

        super().__init__(
            bench,
            "Run from cold",
            "One cold start of the chosen stack, from t0 to the first token",
            "Choose, write your guess, then run.",
        )
        wide, label = w.Layout(width="620px"), {"description_width": "90px"}
        self.menus = {}
        for layer in LAYERS:
            if options := bench.menu[layer]:
                self.menus[layer] = w.Dropdown(
                    options=[(o.label, o.name) for o in options],
                    value=bench.stack.get(layer, ""),
                    description=layer,
                    layout=wide,
                    style=label,
                )
                self.menus[layer].observe(
                    lambda change, layer=layer: self._chosen(layer, change["new"]), names="value"
                )
        narrow = w.Layout(width="220px")
        self.guess = w.FloatText(
            value=0.0, description="your guess, s", layout=narrow, style=label, step=0.5
        )
        self.bars = w.HTML()
        controls = w.HBox([self.guess, self.button])
        self.box = w.VBox([*self.menus.values(), controls, self.status, self.bars])
        self._quiet = False

    def grow(self, html: str) -> None:
        self.bars.value = html

    def show_choice(self) -> None:
        self._quiet = True
        for layer, widget in self.menus.items():
            widget.value = self.bench.stack.get(layer, "")
        self._quiet = False

    def _chosen(self, layer: str, name: str) -> None:
        if self._quiet:
            return
        try:
            self.bench.choose(**{layer: name})
            self.say(f"{layer}: {name or _NONE}")
        except LabError as error:
            self.say(str(error), bad=True)
            self.show_choice()

    def run(self) -> None:
        self.bars.value = ""
        self.bench.guess(self.guess.value or None).run()

    def show_result(self) -> None:
        self.bars.value = ""
        super().show_result()
