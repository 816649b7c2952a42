"""docs/limits.md says what the source says, and every limit has a test."""

from __future__ import annotations

import importlib
import re

import pytest
from support.places import ROOT

ROWS = re.findall(
    r"^\| (?P<what>[^|]+) \| (?P<value>[0-9.,]+)(?P<unit> [A-Za-z]+)? \| (?P<path>[a-z_/]+\.py) (?P<name>[A-Z_]+) "
    r"\| (?P<test>\S+) (?P<function>\w+) \|$",
    (ROOT / "docs" / "limits.md").read_text(),
    re.MULTILINE,
)
UNITS = {"": 1, " KiB": 1 << 10, " MiB": 1 << 20, " GiB": 1 << 30, " s": 1}


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[3]}-{row[4]}" for row in ROWS])
def test_a_limit_is_what_the_document_says_and_has_a_test(row):
    _, value, unit, path, name, test, function = row
    module = importlib.import_module("virtserial." + path.removesuffix(".py").replace("/", "."))
    assert getattr(module, name) == float(value.replace(",", "")) * UNITS[unit]
    assert re.search(rf"^(    )?def {function}\(", (ROOT / test).read_text(), re.MULTILINE), f"no {function} in {test}"


def test_every_row_was_read():
    lines = [line for line in (ROOT / "docs" / "limits.md").read_text().splitlines() if line.startswith("| ")]
    assert len(ROWS) == sum(".py" in line for line in lines) > 40


def test_documents_name_tests_that_exist():
    tests = {path.name for path in (ROOT / "tests").rglob("*.py")}
    functions = {
        name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        prose = re.sub(r"(?ms)^```python$.*?^```$", "", page.read_text())
        words = re.findall(r"[\w/*\\]*test_[\w*\\]+(?:\.py)?", prose)
        for word in words:
            name = word.replace("\\", "").rpartition("/")[2]
            if "*" in name:
                continue
            known = name in tests if name.endswith(".py") else name in functions or f"{name}.py" in tests
            assert known, f"{page.name} names {word}"
