"""The stable interface as users meet it: the pages' examples run, types hold, and an import costs nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from unittest.mock import Mock

import pytest
from support.fetched import fetch_or_skip
from support.places import ENVIRONMENT, ROOT

import virtserial
import virtserial.handler
import virtserial.testing
from virtserial.rig import RigUnavailable
from virtserial.rig.image import guest_image
from virtserial.rig.qemu import find_qemu
from virtserial.testing.plugin import virtserial_boot, virtserial_serve  # noqa: F401  # fixtures

PAGE = (ROOT / "docs/api.md").read_text()
EXAMPLES = re.findall(r"<!-- runs: prints ([^\n]*) -->\n```python\n(.*?)```", PAGE, re.DOTALL)
[TEST] = re.findall(r"<!-- a test -->\n```python\n(.*?)```", PAGE, re.DOTALL)
INSTALLED = ["-p", "virtserial.testing.plugin"]
"""What an installed virtserial is to pytest, by its entry point."""
TYPED = '''
def test_types(virtserial_serve: Serve, virtserial_attach: Attach, virtserial_boot: Boot) -> None:
    machine = virtserial_serve(["a"], consoles=["b"], max_ports=4)
    line: bytes = virtserial_attach(machine).open("a").readline()
    status: int = virtserial_boot(machine).run("true").status
    assert line and not status
'''


def run(*words, cwd):
    return subprocess.run([sys.executable, *words], env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize(("printed", "program"), EXAMPLES, ids=["blocking", "asyncio"])
def test_an_example_prints_what_the_page_says(tmp_path, printed, program):
    done = run("-W", "error", "-c", program, cwd=tmp_path)
    assert (done.stdout, done.stderr) == (printed + "\n", "")


def test_the_first_example_is_shorter_than_ten_lines():
    assert len([line for line in EXAMPLES[0][1].splitlines() if line]) < 10


def test_the_test_of_the_page_passes(tmp_path):
    (tmp_path / "test_it.py").write_text(TEST)
    done = run("-m", "pytest", "-q", *INSTALLED, "-p", "no:cacheprovider", "test_it.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_users_files_pass_mypy_strict(tmp_path):
    for number, (_, program) in enumerate(EXAMPLES):
        (tmp_path / f"example{number}.py").write_text(program)
    imports = "from virtserial.testing import Attach, Boot, Serve\n"
    (tmp_path / "test_types.py").write_text(imports + TYPED)
    (tmp_path / "names.py").write_text("import virtserial\n" + "".join(f"virtserial.{n}\n" for n in virtserial.__all__))
    # With the project's own settings, which are strict, what it knows of the package already is used again.
    done = run("-m", "mypy", "--strict", *tmp_path.glob("*.py"), cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "wrong.py").write_text("import virtserial\nvirtserial.serv\n")
    assert 'no attribute "serv"' in run("-m", "mypy", "--strict", tmp_path / "wrong.py", cwd=ROOT).stdout


@pytest.mark.parametrize("module", [virtserial.handler, virtserial.testing])
def test_the_names_that_stay_in_other_modules_are_there(module):
    for name in module.__all__:
        assert getattr(module, name).__doc__, name
    with pytest.raises(AttributeError):
        module.nothing  # noqa: B018


def test_every_name_is_there_and_has_its_text():
    for name in virtserial.__all__:
        value = getattr(virtserial, name)
        assert name == "__version__" or value.__doc__, name
        for word, method in vars(value).items() if isinstance(value, type) else ():
            if not word.startswith("_") and callable(method) and value.__module__.startswith("virtserial.embed"):
                assert method.__doc__, f"{name}.{word}"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        virtserial.nothing  # noqa: B018


def test_the_names_for_type_checkers_are_those_that_are_loaded():
    tree = ast.parse((ROOT / "src/virtserial/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {node.module: tuple(name.name for name in node.names) for node in block.body}
    assert typed == virtserial._HOMES


def test_a_name_loads_only_its_home(tmp_path):
    lazily = "import sys, virtserial; virtserial.ConfigError; print('asyncio' in sys.modules)"
    assert run("-c", lazily, cwd=tmp_path).stdout == "False\n"


def test_a_machine_without_a_qemu_skips_the_test(virtserial_boot, monkeypatch):  # noqa: F811
    monkeypatch.setattr("virtserial.rig.guest.find_qemu", Mock(side_effect=RigUnavailable("no network")))
    with pytest.raises(pytest.skip.Exception, match="no real guest here: no network"):
        virtserial_boot()


@pytest.mark.qemu
def test_a_real_guest_boots_on_a_programs_device(virtserial_serve, virtserial_boot):  # noqa: F811
    fetch_or_skip(find_qemu)
    fetch_or_skip(guest_image)
    machine = virtserial_serve(["org.a"])
    machine.port("org.a").write(b"hello, guest\n")
    guest = virtserial_boot(machine)
    # Before the port is there, or its host is known to be, there is nothing to read.
    loop = "until head -n 1 /dev/virtio-ports/org.a 2>/dev/null | grep hello; do sleep 0.1; done"
    assert guest.check(loop) == "hello, guest"
