"""Choose a stack, predict, run, watch its phases arrive – with widgets in JupyterLab, with plain
calls everywhere else.

    bench = StackBench(preset="small", link="1gbit")        # shows itself as the last expression of
        a cell
    bench.choose(weights="safetensors"); bench.guess(4.5); bench.run()     # the same without a
        mouse, or headless
    bench.text                                              # everything it shows, in words

While a trial runs, bars are drawn from a handful of numbers (about 0.1 ms a phase): matplotlib
would take a core from what is measured. The finished waterfall is the usual one. Every widget is a
native form control, reachable by Tab and worked by arrow keys, Space and Enter; what was run stays
on an exported page as figure and text. One trial is an anecdote, and the bench says so. Lesson:
notebooks/08_stacking."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from labkit.core.records import Run, Trial
from labkit.core.units import show_s
from labkit.errors import BadInput, LabError
from labkit.technique import LAYERS
from labkit.viz import captions
from labkit.viz import theme as look

_NONE = "(none)"


@dataclass(frozen=True)
class Option:
    """One technique of a layer in the menu. `missing`: why it cannot run here, "" when it can."""

    name: str
    title: str
    missing: str = ""

    @property
    def label(self) -> str:
        head = self.name or _NONE
        return (
            f"{head} – not here: {self.missing}"
            if self.missing
            else f"{head} – {self.title}"
            if self.title
            else head
        )


@dataclass(frozen=True)
class Attempt:
    """What one press of Run gave."""

    stack: dict[str, str]
    guess_s: float | None
    run: Run | None = None
    error: str = ""

    @property
    def name(self) -> str:
        return (
            self.run.arm_names[0]
            if self.run
            else ", ".join(f"{k}={v}" for k, v in self.stack.items() if v)
        )


def menu(scenario: str = "fresh-node") -> dict[str, list[Option]]:
    """Techniques by layer; those that this host lacks carry the reason."""
    from labkit.core import host
    from labkit.technique import techniques

    card, made = host.card(), {}
    for layer in LAYERS:
        options = (
            [Option("", "nothing in this layer")] if layer in ("init", "device", "snapshot") else []
        )
        for t in techniques(layer):
            found = t.available(card)
            missing = (
                f"means nothing on a {scenario}"
                if scenario in t.excluded_scenarios
                else ""
                if found.ok
                else found.missing
            )
            options.append(Option(t.name, t.title, missing))
        made[layer] = sorted(options, key=lambda o: bool(o.missing))
    return made


class StackBench:
    """A bench for one stack at a time. `recorded`: answer from a run's arms instead of measuring,
    stamped as such."""

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

        self.preset, self.scenario, self.link, self.blocks, self.recorded = (
            preset,
            scenario,
            link,
            blocks,
            recorded,
        )
        self.menu = menu(scenario)
        self.stack: dict[str, str] = dict.fromkeys(LAYERS, "") | dict(
            Stack.parse(start).resolved(host.card()).layers
        )
        self.guess_s: float | None = None
        self.attempts: list[Attempt] = []
        self._view: _View | None = None

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

    def guess(self, seconds: float | None) -> StackBench:
        """The prediction of the next run, written down before it."""
        self.guess_s = seconds
        return self

    def run(self) -> Run:
        """Measure the chosen stack (or look it up in `recorded`) and show it. Raises LabError where
        the combination means nothing."""
        made = self._looked_up() if self.recorded else self._measured()
        self.attempts.append(Attempt(dict(self.stack), self.guess_s, made))
        self.guess_s = None
        if self._view:
            self._view.show_result()
        return made

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

    def _looked_up(self) -> Run:
        from dataclasses import replace

        from labkit.stack import replay

        assert self.recorded
        wanted = {k: v for k, v in self.stack.items() if v and k != "process"}
        for arm in self.recorded.experiment.get("arms", []):
            if {k: v for k, v in arm["stack"].items() if v and k != "process"} == wanted:
                part = replace(
                    self.recorded,
                    trials=tuple(self.recorded.of_arm(arm["name"], only_ok=False)),
                    experiment={**self.recorded.experiment, "arms": [arm]},
                )
                return part if captions.replayed_from(part) else replay.marked(part)
        arms = "; ".join(a["name"] for a in self.recorded.experiment.get("arms", []))
        raise BadInput(
            "this combination was not recorded",
            why="nothing is made up here",
            fix=f"one of: {arms}",
        )

    def verdict(self, attempt: Attempt) -> str:
        """Guess against measurement, in a sentence."""
        from labkit.core import stats

        good = [t.total_s for t in attempt.run.trials if t.ok and t.total_s] if attempt.run else []
        if not good:
            return (
                attempt.error
                or "failed: " + ", ".join(sorted({t.outcome for t in attempt.run.trials}))
                if attempt.run
                else attempt.error
            )
        took = stats.median(good)
        said = (
            "no guess"
            if not attempt.guess_s
            else (
                f"guessed {show_s(attempt.guess_s)}, off by"
                f" {max(took / attempt.guess_s, attempt.guess_s / took):.1f}×"
            )
        )
        return f"{show_s(took)} ({said}); n = {len(good)}" + (
            ": one trial is an anecdote" if len(good) == 1 else ""
        )

    @property
    def text(self) -> str:
        """The text twin: what is chosen, and every attempt."""
        lines = [
            "chosen: " + ", ".join(f"{layer} {name or _NONE}" for layer, name in self.stack.items())
        ]
        lines += [f"{i}. {a.name}: {self.verdict(a)}" for i, a in enumerate(self.attempts, 1)]
        done = [a for a in self.attempts if a.run and any(t.ok for t in a.run.trials)]
        return "\n".join(
            lines
            + (
                [captions.waterfall_text(captions.choose(done[-1].run))]
                if done and done[-1].run
                else []
            )
        )

    def html(self) -> str:
        """What stays on an exported page: attempts as a list, the last waterfall as a figure."""
        from labkit.viz.waterfall import waterfall

        rows = "".join(
            f"<li>{escape(a.name)}: {escape(self.verdict(a))}</li>" for a in self.attempts
        )
        done = [a.run for a in self.attempts if a.run and any(t.ok for t in a.run.trials)]
        figure = waterfall(done[-1]).html() if done else ""
        chosen = ", ".join(f"{layer}: {name or _NONE}" for layer, name in self.stack.items())
        return f"<p>Chosen – {escape(chosen)}</p>" + (f"<ol>{rows}</ol>" if rows else "") + figure

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        from labkit.viz.live import where

        if where() == "widget":
            self._view = _View(self)
            self._view.display()
        else:
            display(HTML(self.html()))

    def __repr__(self) -> str:
        return self.text


class Growing:
    """A Progress whose phases become bars as they end. Also without a view: then it says nothing
    until the trial is done."""

    def __init__(self, view: _View | None):
        self.view = view
        self.ends: list[tuple[str, float]] = []

    def note(self, text: str) -> None:
        if self.view:
            self.view.say(text)

    def trial_started(self, arm: str, block: int = 0, blocks: int = 0, *_: Any) -> None:
        self.ends = []
        self.note(f"{arm}: t0 – nothing is running")

    def phase(self, name: str, at_s: float = 0.0, *_: Any) -> None:
        self.ends.append((name, at_s))
        if self.view:
            self.view.grow(growing_html(self.ends))
            after = " – answering, then everything is taken down" if name == "ready" else ""
            self.view.say(f"{name} over after {show_s(at_s)}{after}")

    def trial_done(self, trial: Trial) -> None:
        if self.view:
            self.view.say(
                f"first token after {show_s(trial.total_s)}"
                if trial.ok and trial.total_s
                else f"{trial.outcome}: {trial.error.get('what', '')}"
            )


def growing_html(ends: list[tuple[str, float]]) -> str:
    """Bars of the phases so far, from what ended when. A phase is taken to begin where the one
    before it ended."""
    until = max((end for _, end in ends), default=0.0) or 1.0
    rows, reached = [], 0.0
    for name, end in ends:
        start = min(reached, end)
        width_percent = max(100 * (end - start) / until, 0.4)
        bar = (
            f"margin-left:{100 * start / until:.1f}%;width:{width_percent:.1f}%;height:14px;"
            f"background:{look.PHASE_COLOURS.get(name, '#7C7C7C')}"
        )
        rows.append(
            f'<tr><td style="text-align:right;padding-right:8px">{escape(name)}</td>'
            f'<td style="width:70%"><div style="{bar}"></div></td>'
            f'<td style="text-align:right">{show_s(end - start)}</td></tr>'
        )
        reached = max(reached, end)
    return f'<table role="presentation" style="width:100%;border:none">{"".join(rows)}</table>'


def announced(text: str, bad: bool = False) -> str:
    """A line that screen readers read out as it changes."""
    return (
        '<div role="status"'
        f' aria-live="polite">{"<b>Not possible.</b> " if bad else ""}{escape(text)}</div>'
    )


class _View:
    """The widgets. Built once a display; the bench itself knows nothing of them."""

    def __init__(self, bench: StackBench):
        import ipywidgets as w

        self.bench = bench
        wide, label = w.Layout(width="620px"), {"description_width": "90px"}
        self.menus = {
            layer: w.Dropdown(
                options=[(o.label, o.name) for o in bench.menu[layer]],
                value=bench.stack.get(layer, ""),
                description=layer,
                layout=wide,
                style=label,
            )
            for layer in LAYERS
            if bench.menu[layer]
        }
        self.guess = w.FloatText(
            value=0.0,
            description="your guess, s",
            layout=w.Layout(width="220px"),
            style=label,
            step=0.5,
        )
        self.button = w.Button(
            description="Run from cold",
            button_style="primary",
            tooltip="One cold start of the chosen stack, from t0 to the first token",
        )
        self.status, self.bars = (
            w.HTML(value=announced("Choose, write your guess, then run.")),
            w.HTML(),
        )
        for layer, menu_widget in self.menus.items():
            menu_widget.observe(
                lambda change, layer=layer: self._chosen(layer, change["new"]), names="value"
            )
        self.button.on_click(self._run)
        self.box = w.VBox(
            [*self.menus.values(), w.HBox([self.guess, self.button]), self.status, self.bars]
        )
        self.handle: Any = None
        self._quiet = False

    def display(self) -> None:
        from IPython.display import HTML, display

        display(self.box)
        self.handle = display(HTML(self.bench.html()), display_id=True)

    def say(self, text: str, bad: bool = False) -> None:
        self.status.value = announced(text, bad)

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

    def _run(self, _button: Any) -> None:
        self.button.disabled = True
        self.bars.value = ""
        try:
            self.bench.guess(self.guess.value or None)
            self.bench.run()
        except LabError as error:
            self.say(str(error), bad=True)
        finally:
            self.button.disabled = False

    def show_result(self) -> None:
        from IPython.display import HTML

        self.bars.value = ""
        self.say(self.bench.verdict(self.bench.attempts[-1]))
        if self.handle is not None:
            self.handle.update(HTML(self.bench.html()))
