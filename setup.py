"""Copies `configs/` into the package while a wheel is built; pyproject.toml holds the rest."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Add the shipped configs to the package. An editable install reads them in the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("configs", Path(self.build_lib, "pneumo_dist", "configs"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
