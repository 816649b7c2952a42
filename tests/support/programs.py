"""Programs of this project, run to their end."""

from __future__ import annotations

import subprocess
import sys

from support.places import ENVIRONMENT

LIMIT = 90
"""Seconds that a program may take."""


def run(*words, program=("-m", "virtserial"), **environment):
    """Run a program and return (exit status, standard output, standard error).

    Args:
        program: what Python runs.
        environment: variables in addition to those of the tests.
    """
    result = subprocess.run(
        [sys.executable, *program, *words], env={**ENVIRONMENT, **environment},
        capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    return result.returncode, result.stdout, result.stderr
