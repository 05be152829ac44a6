"""A test module run as a program by `python -O`, which removes every assert.

A plain module for tests.
"""

import os
import subprocess
import sys
from pathlib import Path

import seriatim


def run(file: str) -> subprocess.CompletedProcess[str]:
    """What the program `file` says of this package, once it has ended."""
    path = os.pathsep.join([str(Path(seriatim.__file__).parents[1]), str(Path(file).parent)])
    return subprocess.run(
        [sys.executable, "-O", file],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
