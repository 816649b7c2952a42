"""Every target over its corpus and a moment of mutations; and that the fuzzer finds what it is there to find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "hostile"))

import engine
import mutations

HERE = Path(__file__).parent
SECONDS = 2
FINDING_SECONDS = 60


@pytest.mark.parametrize("name", engine.TARGETS)
def test_corpus_and_a_moment_of_mutations_find_nothing(name):
    assert engine.run_mutations(name, SECONDS) >= len(engine.seeds(name)) > 2


def test_a_finding_tells_its_input(monkeypatch):
    monkeypatch.setattr(engine, "load", lambda name: lambda data: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        engine.run_mutations("chains", 1)
    assert caught.value.__notes__ == [f"fuzz target chains, input {engine.seeds('chains')[0].hex()}"]


BOUNDS = {
    "chains": [
        ("virtio/virtqueue.py", "head >= size"),
        ("virtio/virtqueue.py", "following >= limit"),
    ],
    "vfio_requests": [
        ("vfio_user/server.py", "irqs.start + irqs.count > self.device.irq_count(irqs.index)"),
        ("memory/table.py", "before.iova + before.size > iova"),
        ("vfio_user/server.py", "len(data) != access.count"),
    ],
}
WITHOUT_A_CHECK = """
import sys
sys.path[:0] = [{here!r}, {hostile!r}, {source!r}]
import engine, mutations
mutations.remove(mutations.find_check({path!r}, {text!r}))
engine.run_mutations({target!r}, {seconds})
"""


@pytest.mark.stress
@pytest.mark.parametrize(
    ("target", "path", "text"), [(target, *check) for target, found in BOUNDS.items() for check in found]
)
def test_a_removed_bounds_check_is_found_within_a_minute(target, path, text):
    program = WITHOUT_A_CHECK.format(
        here=str(HERE), hostile=str(HERE.parent / "hostile"), source=str(mutations.SOURCE), path=path, text=text,
        target=target, seconds=FINDING_SECONDS,
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=4 * FINDING_SECONDS)
    assert done.returncode == 1, "nothing was found"
    assert f"fuzz target {target}, input " in done.stderr
