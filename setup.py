"""What pyproject.toml cannot say: a wheel carries the notebooks and the recorded runs, which stand
at the top level of a checkout (labkit.core.shipped finds them in both)."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CARRIED = ("notebooks", "data/recorded")


class WithNotebooks(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            for name in CARRIED:
                shutil.copytree(
                    name,
                    Path(self.build_lib) / "labkit" / "_lab" / name,
                    ignore=shutil.ignore_patterns(".ipynb_checkpoints"),
                    dirs_exist_ok=True,
                )


setup(cmdclass={"build_py": WithNotebooks})
