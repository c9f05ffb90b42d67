"""What a plan asks of a person at a terminal: sizes, link, traffic and price; Enter leaves each as
it is.

    given = ask({"image_bytes": None, …}, input)       # prompts on stdout, answers from stdin
    not_given(given)                            # {"as measured": ["image", …], "left out": […]}

The same fields as the form in a notebook (labkit.viz.planner). Lesson: notebooks/09_decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from labkit.core.units import parse_bytes, parse_rate
from labkit.errors import BadInput

AS_MEASURED, LEFT_OUT = "as measured", "left out"
_PER = {"s": 1.0, "min": 60.0, "h": 3600.0, "day": 86_400.0, "d": 86_400.0}


def requests_per_s(text: str) -> float:
    """`"120/h"` → requests per second. Raises BadInput."""
    number, _, unit = text.partition("/")
    try:
        value = float(number) / _PER[unit.strip() or "s"]
    except (ValueError, KeyError):
        value = -1.0
    if not 0 < value < 1e6:
        raise BadInput(
            f"not a rate of requests: {text!r}", fix="write it like 120/h, 0.5/s or 2000/day"
        )
    return value


def _price(text: str) -> float:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise BadInput(f"not a price: {text!r}", fix="a number in your currency, like 2.5")
    return value


@dataclass(frozen=True)
class Question:
    """`name`: the input of a plan; `empty`: what no answer means."""

    name: str
    label: str
    example: str
    read: Callable[[str], float]
    empty: str = AS_MEASURED


QUESTIONS = (
    Question("image_bytes", "image, as pulled", "5GB", parse_bytes),
    Question("model_bytes", "model", "16GB", parse_bytes),
    Question("link_bytes_per_s", "link from registry and bucket to a node", "10gbit", parse_rate),
    Question("rate_per_s", "requests", "120/h", requests_per_s, LEFT_OUT),
    Question("price_per_gpu_hour", "price of a GPU-hour", "2.5", _price, LEFT_OUT),
)


def ask(
    given: Mapping[str, float | None],
    read: Callable[[str], str],
    say: Callable[[str], object] = print,
) -> dict[str, float | None]:
    """`given` with what was answered; what was given already is not asked. The end of the input
    leaves the rest as it is."""
    found = dict(given)
    say("Your own values, or Enter:")
    for question in QUESTIONS:
        if found.get(question.name) is not None:
            continue
        prompt = f"  {question.label} (like {question.example}) [{question.empty}]: "
        while True:
            try:
                answer = read(prompt).strip()
            except EOFError:
                say("")
                return found
            if not answer:
                break
            try:
                found[question.name] = question.read(answer)
                break
            except BadInput as error:
                say(f"  {error.what}" + (f" – {error.fix}" if error.fix else ""))
    say("")
    return found


def not_given(given: Mapping[str, float | None]) -> dict[str, list[str]]:
    """The fields that nobody filled, by what that means for a plan."""
    found: dict[str, list[str]] = {AS_MEASURED: [], LEFT_OUT: []}
    for question in QUESTIONS:
        if given.get(question.name) is None:
            found[question.empty].append(question.label)
    return {meaning: labels for meaning, labels in found.items() if labels}
