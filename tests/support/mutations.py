"""Removes checks one by one and shows which hostile case, or which test, notices.

    python3 tests/support/mutations.py [--only TEXT]         minutes: every check of the rooms below
    python3 tests/support/mutations.py --list

A check is an `if` whose body ends in `raise`; removed means that its condition is never true.  What no case notices is
tried with the tests of its room; what these do not notice either is a survivor.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.machinery
import io
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
ROOMS = ("memory", "virtio", "console", "vfio_user", "vhost_user")
DRIVER_SIDE = ("virtio/ring/split/driver.py", "vfio_user/client.py", "vhost_user/client.py")
"""What a guest's driver cannot reach; the tests of these alone are tried."""
LIMIT = 240
"""Seconds; half of it as CPU time."""
MEMORY = 1 << 30
MOVED = 77
"""Exit status: the source has changed since the list was made."""
TESTS = {
    "memory": ("tests/memory", "tests/virtio"),
    "virtio": ("tests/virtio", "tests/console"),
    "console": ("tests/console",),
    "virtio/ring/split/driver.py": ("tests/virtio/test_split_driver.py", "tests/driver"),
    "vfio_user": ("tests/vfio_user",),
    "vfio_user/server.py": (
        "tests/vfio_user/test_checks.py",
        "tests/vfio_user/test_server.py",
        "tests/vfio_user/test_negotiation.py",
    ),
    "vfio_user/client.py": ("tests/vfio_user/test_checks.py", "tests/vfio_user/test_client.py",),
    "vfio_user/stream.py": ("tests/vfio_user/test_stream.py",),
    "vfio_user/dma.py": ("tests/vfio_user/test_dma.py",),
    "vhost_user": ("tests/vhost_user",),
}
"""By room or file: where a check's tests are."""
EXPLAINED = {
    ("memory/barrier.py", "machine"): "another machine",
    ("memory/state.py", "sys.byteorder"): "another machine",
    ("vfio_user/server.py", "access.count > MAX_DATA_XFER_SIZE"): "a region is smaller, its size is checked next",
    ("vfio_user/server.py", "length > len(data)"): "the count of each write is compared with its data next",
    ("vfio_user/stream.py", "time.monotonic() > deadline"): "the wait has the same limit; this one is for floods",
}
"""Survivors that are no gap, and why."""


class Check(NamedTuple):
    """A condition at whose truth something is refused."""

    path: str
    line: int
    text: str

    @property
    def module(self):
        return "virtserial." + self.path.removesuffix(".py").replace("/", ".")

    @property
    def name(self):
        return f"{self.path}:{self.line}: if {self.text}"


NOTHING = Check("", 0, "nothing")
"""What is removed to see that everything passes with every check in place."""


def checks():
    """Every check of the rooms, in the order of their files and lines."""
    found = []
    for room in ROOMS:
        for path in sorted((SOURCE / "virtserial" / room).rglob("*.py")):
            relative = path.relative_to(SOURCE / "virtserial").as_posix()
            guards = _guards(ast.parse(path.read_text()))
            found += [Check(relative, node.lineno, ast.unparse(node.test)) for node in guards]
    return found


def find_check(path, text):
    """The first check of a file with this in its condition."""
    return next(each for each in checks() if each.path == path and text in each.text)


def _guards(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise)]


def _tests_of(check):
    return TESTS.get(check.path) or TESTS[check.path.partition("/")[0]]


class _WithoutCheck(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module without one of its checks."""

    def __init__(self, check):
        self._check = check
        self._path = str(SOURCE / "virtserial" / check.path)

    def find_spec(self, name, path=None, target=None):
        if name != self._check.module:
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=self._path)

    def get_filename(self, fullname):
        return self._path

    def get_data(self, path):
        return Path(path).read_bytes()

    def get_code(self, fullname):
        tree = ast.parse(Path(self._path).read_text())
        guard = next(node for node in _guards(tree) if node.lineno == self._check.line)
        guard.test = ast.copy_location(ast.Constant(False), guard.test)
        return compile(tree, self._path, "exec")


def remove(check):
    """Have the check's module imported without it from now on; it must not have been imported yet."""
    assert check.module not in sys.modules
    sys.meta_path.insert(0, _WithoutCheck(check))


def _failing_cases():
    """The names of the cases that do not come out as expected on our device in this process."""
    from virtserial.conformance.cases import CASES
    from virtserial.conformance.driver import HostileDriver
    from virtserial.testing.hostile.in_memory import InMemoryMachine

    failing = []
    for case in CASES:
        machine = InMemoryMachine()
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                if str(HostileDriver(machine).play(case)) != str(case.expected):
                    failing.append(case.name.split()[0])
        except Exception:
            failing.append(case.name.split()[0])
        finally:
            machine.close()
    return failing


def _in_mutant(check, what):
    """Run `what` ("cases" or a folder of tests) without the check in a process of its own; (notices, what it says)."""
    arguments = [sys.executable, __file__, "--without", check.path, str(check.line), check.text, what]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=LIMIT, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return True, "does not end"
    if done.returncode == MOVED:
        raise SystemExit(f"{check.name}: the source has changed meanwhile")
    return done.returncode != 0, done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def _without(path, line, text, what):
    if path != NOTHING.path:
        check = Check(path, line, text)
        if check not in checks():
            return MOVED
        remove(check)
    # Without a check of a loop there may be no end to it.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT // 2, LIMIT // 2))
    if what == "cases":
        failing = _failing_cases()
        print(" ".join(failing))
        return 1 if failing else 0
    import pytest

    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *what.split()]))


def try_all(only=""):
    """Print a line for each check; return the survivors, and the cases that noticed nothing."""
    from virtserial.conformance.cases import CASES

    for what in {"cases", *(" ".join(_tests_of(check)) for check in checks() if only in check.name)}:
        fails, words = _in_mutant(NOTHING, what)
        if fails:
            raise SystemExit(f"with every check in place: {what}: {words}")
    survivors, noticed_by = [], {}
    for check in checks():
        if only not in check.name:
            continue
        noticed = False
        if check.path not in DRIVER_SIDE:
            noticed, words = _in_mutant(check, "cases")
            for case in words.split() if noticed else ():
                noticed_by.setdefault(case, []).append(check.name)
        if not noticed:
            noticed, words = _in_mutant(check, " ".join(_tests_of(check)))
            words = f"tests: {words}"
        reason = next((why for (path, text), why in EXPLAINED.items() if path == check.path and text in check.text), "")
        if not noticed and reason:
            words = f"explained: {reason}"
        elif not noticed:
            survivors.append(check.name)
        print(f"{'noticed ' if noticed else 'SURVIVES'} {check.name:100} {words}", flush=True)
    stopping = [case.name.split()[0] for case in CASES if case.expected.stopped]
    return survivors, [name for name in stopping if name not in noticed_by]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--without", nargs=4, metavar=("FILE", "LINE", "TEXT", "WHAT"))
    words = parser.parse_args()
    if words.without:
        path, line, text, what = words.without
        return _without(path, int(line), text, what)
    if words.list:
        print(*(check.name for check in checks()), sep="\n")
        return 0
    survivors, idle = try_all(words.only)
    print(f"\n{len(survivors)} survivors", *survivors, sep="\n  ")
    if not words.only:
        print("cases of a stopped device that noticed nothing:", *idle)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.path.insert(0, str(SOURCE))
    sys.exit(main())
