"""`virtserial exporter` as a process, and what it tells."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

from support.places import ENVIRONMENT

SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@contextmanager
def exporter(registry, *options, program=("-m", "virtserial")):
    """A running one; the value is its URL.  `program` are Python's words that start it."""
    process = subprocess.Popen(
        [sys.executable, *program, "exporter", "--listen", "127.0.0.1:0", *options],
        env={**ENVIRONMENT, "VIRTSERIAL_REGISTRY": str(registry)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            line = process.stdout.readline()
            assert line.startswith("virtserial exporter: http"), process.stderr.read()
            yield line.split()[-1]
        finally:
            process.terminate()
            output, errors = process.communicate(timeout=60)
            assert (process.returncode, output, errors) == (0, "", "")


def scrape(url, **options):
    """The figures, {(name, frozenset of labels): value}."""
    with urllib.request.urlopen(url, timeout=60, **options) as answer:
        text = answer.read().decode()
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, labels, value = SAMPLE.fullmatch(line).groups()
            key = (name, frozenset(LABEL.findall(labels or "")))
            assert key not in found, f"twice: {line}"
            found[key] = float(value)
    return found


def values(figures, name, **labels):
    """The values of all series of a metric that have these labels."""
    return [value for (each, has), value in figures.items() if each == name and set(labels.items()) <= has]


def value(figures, name, **labels):
    """The value of the only series that has these labels."""
    [found] = values(figures, name, **labels)
    return found
