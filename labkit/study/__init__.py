"""The study: the article's ladder on this host, measured once and read everywhere – by the report,
the notebooks and the planner.

    study = read("report/study")             # what `labkit study --out report/study` wrote
    study.run, study.sizes, study.steps
    measured("report/study", ["naive"], measure)     # in a notebook: its run, else a live one

Lesson: notebooks/08_stacking."""

from labkit.study.handed import measured, parts
from labkit.study.record import Step, Study, latest, read, recorded

__all__ = ["Step", "Study", "latest", "measured", "parts", "read", "recorded"]
