"""Every target over its corpus and a moment of mutations; slow: 10 seconds of each, guided by coverage, and that the
fuzzer finds what it is there to find.

VIRTSERIAL_FUZZ_SECONDS says how long in place of these ten; ./scripts/fuzz is for long runs.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from fuzz import engine
from support.places import ENVIRONMENT, ROOT

WITH_TESTS = {**ENVIRONMENT, "PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}{os.pathsep}{ROOT / 'tests'}"}
GUIDED_SECONDS = int(os.environ.get("VIRTSERIAL_FUZZ_SECONDS", "10"))
SECONDS = 1
FINDING_SECONDS = 60


A_MOMENT = """
from fuzz import engine
assert engine.run_mutations({name!r}, {seconds}, seed={name!r}) >= len(engine.seeds({name!r})) > 2
"""


@pytest.mark.parametrize("name", engine.TARGETS)
def test_corpus_and_a_moment_of_mutations_find_nothing(name):
    """In a process of its own: targets count its descriptors, and a thread that a test left would open some."""
    program = A_MOMENT.format(name=name, seconds=SECONDS)
    done = subprocess.run([sys.executable, "-c", program], env=WITH_TESTS, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.stress
@pytest.mark.slow
@pytest.mark.timeout(GUIDED_SECONDS + 180)
@pytest.mark.parametrize("name", engine.TARGETS)
def test_a_guided_run_finds_nothing(name, tmp_path):
    """What makes a target fail is in its output."""
    (tmp_path / "found").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.engine", name, str(GUIDED_SECONDS), str(tmp_path / "found")],
        cwd=tmp_path, env=WITH_TESTS, timeout=GUIDED_SECONDS + 120, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert not list(tmp_path.glob("crash-*"))


def test_a_finding_tells_its_input(monkeypatch):
    monkeypatch.setattr(engine, "load", lambda name: lambda data: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        engine.run_mutations("chains", 1)
    assert caught.value.__notes__ == [f"fuzz target chains, input {engine.seeds('chains')[0].hex()}"]


BOUNDS = {
    "chains": [
        ("virtio/ring/split/table.py", "head >= size"),
        ("virtio/ring/split/table.py", "following >= limit"),
    ],
    "vfio_requests": [
        ("vfio_user/server.py", "irqs.start + irqs.count > self.device.irq_count(irqs.index)"),
        ("memory/table.py", "before.iova + before.size > iova"),
        ("vfio_user/server.py", "len(data) != access.count"),
    ],
    "vhost_requests": [
        ("vhost_user/server.py", "index >= len(self.vrings)"),
        ("vhost_user/server.py", "size > self.device.max_queue_size"),
    ],
}
WITHOUT_A_CHECK = """
from fuzz import engine
from support import mutations
mutations.remove(mutations.find_check({path!r}, {text!r}))
engine.run_mutations({target!r}, {seconds})
"""


@pytest.mark.stress
@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "path", "text"), [(target, *check) for target, found in BOUNDS.items() for check in found]
)
def test_a_removed_bounds_check_is_found_within_a_minute(target, path, text):
    program = WITHOUT_A_CHECK.format(
        path=path, text=text, target=target, seconds=FINDING_SECONDS
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=WITH_TESTS, capture_output=True, text=True, timeout=4 * FINDING_SECONDS
    )
    assert done.returncode == 1, "nothing was found"
    assert f"fuzz target {target}, input " in done.stderr
