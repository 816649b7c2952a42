"""Runs a fuzz target: with atheris (coverage-guided) where it is installed, else by mutation of the corpus alone.

    python3 -m fuzz.engine TARGET SECONDS [FOLDER]   end with the exception, or print how many inputs were tried

`scripts/fuzz` calls this.  FOLDER takes what atheris finds worth keeping; what made a target fail is written to
crash-* in the current folder.
"""

from __future__ import annotations

import hashlib
import importlib
import random
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
MAX_LENGTH = 4096
INPUT_SECONDS = 20
"""Longer than any input may take: then it is a finding."""
TARGETS = {
    "chains": "fuzz.device_targets",
    "control": "fuzz.device_targets",
    "registers": "fuzz.device_targets",
    "legacy_registers": "fuzz.device_targets",
    "rings": "fuzz.device_targets",
    "packed_chains": "fuzz.packed_targets",
    "packed_rings": "fuzz.packed_targets",
    "packed_lying_device": "fuzz.packed_targets",
    "lying_device": "fuzz.device_targets",
    "vfio_stream": "fuzz.peer_targets",
    "vfio_requests": "fuzz.peer_targets",
    "vfio_version": "fuzz.peer_targets",
    "vfio_client": "fuzz.peer_targets",
    "vhost_requests": "fuzz.vhost_targets",
    "vhost_front": "fuzz.vhost_targets",
    "vhost_client": "fuzz.vhost_targets",
    "json_stream": "fuzz.text_targets",
    "qmp": "fuzz.text_targets",
    "readline": "fuzz.text_targets",
    "options": "fuzz.text_targets",
    "websocket": "fuzz.text_targets",
    "telnet": "fuzz.text_targets",
}


def load(name):
    """The target's function; its module is imported now."""
    return getattr(importlib.import_module(TARGETS[name]), name)


def seeds(name):
    """The corpus of a target."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


INTERESTING = (0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 63, 64, 127, 128, 255, 256, 1023, 1024, 4095, 4096, 0x7FFF, 0x8000,
               0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 63), (1 << 64) - 1)  # fmt: skip


def mutated(chance, pool):
    """One input: a seed, changed a little or a lot."""
    data = bytearray(chance.choice(pool))
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(data) + 1)
        what = chance.randrange(7)
        if what == 0:
            data[at:at] = chance.randbytes(chance.choice((1, 2, 8, 40)))
        elif what == 1:
            del data[at : at + chance.choice((1, 2, 8, 40))]
        elif what == 2:
            size = chance.choice((1, 2, 4, 8))
            data[at : at + size] = (chance.choice(INTERESTING) & (1 << 8 * size) - 1).to_bytes(size, "little")
        elif what == 3 and data:
            data[min(at, len(data) - 1)] ^= 1 << chance.randrange(8)
        elif what == 4:
            other = chance.choice(pool)
            start = chance.randrange(len(other) + 1)
            data[at:at] = other[start : start + chance.choice((4, 16, 100))]
        elif what == 5:
            data[at : at + 40] *= 2
        else:
            data[at:] = chance.randbytes(chance.randrange(200))
    return bytes(data[:MAX_LENGTH])


def _too_long(number, frame):
    raise AssertionError(f"one input takes longer than {INPUT_SECONDS} s")


def run_mutations(name, seconds, seed=None):
    """Try mutations of the corpus for so long; return how many inputs were tried.

    The exception that a target raises has the input in a note.
    """
    target, pool = load(name), seeds(name)
    signal.signal(signal.SIGALRM, _too_long)
    chance = random.Random(seed)
    end, tried = time.monotonic() + seconds, 0
    inputs = iter(pool)
    while tried < len(pool) or time.monotonic() < end:
        data = next(inputs, None)
        if data is None:
            data = mutated(chance, pool)
        signal.alarm(INPUT_SECONDS)
        try:
            target(data)
        except BaseException as error:
            error.add_note(f"fuzz target {name}, input {data.hex()}")
            raise
        finally:
            signal.alarm(0)
        tried += 1
    return tried


def run_atheris(name, seconds, folder):
    """Have atheris do it; does not return."""
    import atheris

    with atheris.instrument_imports(include=["virtserial"]):
        target = load(name)
    atheris.Setup(
        [sys.argv[0], f"-max_total_time={seconds}", f"-max_len={MAX_LENGTH}", "-timeout=20", "-rss_limit_mb=2048",
         "-print_final_stats=1", *([str(folder)] if folder else []), str(CORPUS / name)],
        target,
    )  # fmt: skip
    atheris.Fuzz()


def main(words):
    name, seconds = words[0], int(words[1])
    try:
        import atheris  # noqa: F401
    except ImportError:
        try:
            tried = run_mutations(name, seconds)
        except BaseException as error:
            data = bytes.fromhex(error.__notes__[-1].rpartition(" ")[2])
            Path(f"crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
            raise
        print(f"{name}: {tried} inputs in {seconds} s without a finding (mutations only: atheris is not installed)")
    else:
        run_atheris(name, seconds, words[2] if len(words) > 2 else None)


if __name__ == "__main__":
    main(sys.argv[1:])
