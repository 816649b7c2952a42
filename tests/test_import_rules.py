"""The house's rules, held by reading the source: who may import whom, and what is forbidden where."""

import ast
from pathlib import Path

import pytest

import virtserial

SOURCE = Path(virtserial.__file__).parent
FILES = sorted(path for path in SOURCE.rglob("*.py"))

FLOORS = [
    {"errors", "loop", "accounting"},
    {"memory", "virtio", "console", "pci"},
    {"state"},
    {"vfio_user"},
    {"channel"},
    {"host_end", "chardev"},
    {"options"},
    {"machine"},
    {"daemon"},
    {"monitor"},
    {"guest"},
    {"client"},
    {"dropin"},
    {"driver"},
    {"rig", "testing"},
    {"cli"},
]
"""A room imports from its own floor and from those above it in this list."""

WITHIN = {"memory": set(), "virtio": {"memory"}, "console": {"memory", "virtio"}, "pci": {"memory", "virtio"}}
"""On the floor of the standard, which rooms each one may use beside itself."""

OUTSIDE_WORLD = {"socket", "asyncio", "time", "select", "selectors", "subprocess", "signal", "threading"}
MAX_LINES = 600


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def floor_of(room):
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imports_of(path):
    """Yield (module, line, late) of every import; late ones are in a function or for type checkers only."""
    tree = ast.parse(path.read_text())
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno, id(node) in late
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            module = node.module or ""
            yield module, node.lineno, id(node) in late
            if module == "virtserial":
                for name in node.names:
                    yield f"virtserial.{name.name}", node.lineno, id(node) in late


def rooms_used(path):
    for module, line, late in imports_of(path):
        parts = module.split(".")
        if parts[0] == "virtserial" and len(parts) > 1 and parts[1] != "__version__":
            yield parts[1], line, late


def test_every_room_has_its_floor():
    rooms = {room_of(path) for path in FILES} - {"__init__", "__main__"}
    assert rooms <= set().union(*FLOORS)


def test_a_room_imports_only_from_its_floor_and_above():
    wrong = []
    for path in FILES:
        room = room_of(path)
        if room in ("__init__", "__main__"):
            continue
        for used, line, _late in rooms_used(path):
            allowed = used == room or floor_of(used) < floor_of(room) or (
                floor_of(used) == floor_of(room) and (room not in WITHIN or used in WITHIN[room])
            )
            if not allowed:
                wrong.append(f"{path.relative_to(SOURCE)}:{line} imports {used}")
    assert wrong == []


def test_modules_import_each_other_in_no_circle():
    graph = {}
    for path in FILES:
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        graph[name] = {module for module, _, late in imports_of(path) if not late}
    finished, under_way = set(), []

    def visit(name):
        assert name not in under_way, " -> ".join([*under_way[under_way.index(name) :], name])
        if name in graph and name not in finished:
            under_way.append(name)
            for module in sorted(graph[name]):
                visit(module)
            under_way.pop()
            finished.add(name)

    for name in graph:
        visit(name)


@pytest.mark.parametrize("room", sorted(FLOORS[1]))
def test_the_standards_rooms_know_no_outside_world(room):
    wrong = []
    for path in (SOURCE / room).rglob("*.py"):
        name = str(path.relative_to(SOURCE))
        for module, line, late in imports_of(path):
            allowed = module == "threading" and name == "memory/barrier.py"
            if module.split(".")[0] in OUTSIDE_WORLD and not allowed:
                wrong.append(f"{name}:{line} imports {module}")
            if module == "virtserial.loop" and not late:
                wrong.append(f"{name}:{line} imports the event loop")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                if node.attr in ("environ", "getenv", "environb"):
                    wrong.append(f"{name}:{node.lineno} looks into the environment")
                # Interrupts are eventfds, and memory is files; nothing else of the standard calls the system.
                if room != "memory" and name != "pci/interrupts.py":
                    wrong.append(f"{name}:{node.lineno} calls os.{node.attr}")
    assert wrong == []


def test_pack_into_is_nowhere():
    wrong = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr == "pack_into")
        or (isinstance(node, ast.ImportFrom) and any(name.name == "pack_into" for name in node.names))
    ]
    assert wrong == [], "pack_into zeroes its target first: another process would see that"


def test_no_file_is_too_long():
    lengths = {str(path.relative_to(SOURCE)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}
