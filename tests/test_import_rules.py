"""The house's rules, held by reading the source: who may import whom, and what is forbidden where."""

import ast
import functools
import re
from pathlib import Path

import pytest

import virtserial

SOURCE = Path(virtserial.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
GUEST_FILES = sorted((SOURCE / "guest").rglob("*.py"))
"""The guest's library, a distribution of its own that src reaches by a symbolic link, which rglob does not follow."""

FLOORS = [
    {
        "errors", "logs", "standard_error", "version", "loop", "accounting", "closing", "foreign", "peeked_socket",
        "handler", "tasks", "named_tuple",
    },
    {"memory", "virtio", "console", "pci"},
    {"state"},
    {"vfio_user", "vhost_user"},
    {"channel"},
    {"host_end", "chardev"},
    {"options"},
    {"machine"},
    {"daemon"},
    {"monitor", "migration"},
    {"guest"},
    {"client"},
    {"metrics"},
    {"dropin"},
    {"driver"},
    {"embed"},
    {"rig", "conformance", "testing"},
    {"fleet"},
    {"web"},
    {"cli"},
]
"""A room imports from its own floor and from those above it in this list."""

WITHIN = {
    "memory": set(),
    "virtio": {"memory"},
    "console": {"memory", "virtio"},
    "pci": {"memory", "virtio"},
    "vfio_user": set(),
    "vhost_user": set(),
    "host_end": set(),
    "chardev": set(),
}
"""On a shared floor, which rooms of it each one may use beside itself.

host_end/ is the worker's, which opens nothing; chardev/ is the keeper's, which opens.  What both know is in channel/.
"""

OUTSIDE_WORLD = {"socket", "asyncio", "time", "select", "selectors", "subprocess", "signal", "threading"}
MAX_LINES = 450
BODIES = ("body", "orelse", "finalbody", "handlers", "cases")
"""Where a statement has others."""


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def floor_of(room):
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text())


@functools.cache
def nodes_of(path):
    return list(ast.walk(tree_of(path)))


@functools.cache
def import_statements(path):
    """[(statement, late)] of the imports of a file: only statements are visited, for there are no others."""
    found = []

    def visit(node, late):
        for statement in (each for part in BODIES for each in getattr(node, part, ())):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                found.append((statement, late))
            type_checking = isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"
            function = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
            visit(statement, late or function or type_checking)

    visit(tree_of(path), False)
    return found


def imports_of(path, modules=()):
    """Yield (module, line, late) of every import; late ones are in a function or for type checkers only.

    `from folder import module` is an import of the module, where `modules` has one of that name.
    """
    for node, late in import_statements(path):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno, late
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path in GUEST_FILES, f"{path}:{node.lineno}: a relative import"
            module = node.module or ""
            if node.level:
                above = ("virtserial", *path.relative_to(SOURCE).parts[: -node.level])
                module = ".".join([*above, module] if module else above)
            for name in node.names:
                whole = f"{module}.{name.name}"
                yield whole if whole in modules else module, node.lineno, late
            if module == "virtserial":
                for name in node.names:
                    yield f"virtserial.{name.name}", node.lineno, late


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


def test_what_is_the_workers_imports_nothing_that_opens():
    wrong = [
        f"{path.relative_to(SOURCE)}:{line} imports {module}"
        for room in ("host_end", "daemon/worker")
        for path in (SOURCE / room).rglob("*.py")
        for module, line, _late in imports_of(path)
        if module.startswith(("virtserial.chardev", "virtserial.daemon.keeper"))
    ]
    assert wrong == []


def test_the_keeper_knows_no_worker():
    wrong = [
        f"{path.relative_to(SOURCE)}:{line} imports {module}"
        for room in ("chardev", "daemon/keeper")
        for path in (SOURCE / room).rglob("*.py")
        for module, line, _late in imports_of(path)
        if module.startswith(("virtserial.host_end", "virtserial.daemon.worker"))
    ]
    assert wrong == []


def import_graph():
    """Which modules of the package each module imports, late and type-only imports included."""
    modules = {}
    for path in FILES + GUEST_FILES:
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {
        name: {module for module, _, _ in imports_of(path, modules) if module in modules and module != name}
        for name, path in modules.items()
    }


def circles_of(graph):
    """The largest sets of modules that reach each other, by Tarjan's algorithm."""
    order, lowest, stack, circles = {}, {}, [], []

    def visit(name):
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for module in sorted(graph[name]):
            if module not in order:
                visit(module)
                lowest[name] = min(lowest[name], lowest[module])
            elif module in stack:
                lowest[name] = min(lowest[name], order[module])
        if lowest[name] == order[name]:
            start = stack.index(name)
            if len(stack) - start > 1:
                circles.append(sorted(stack[start:]))
            del stack[start:]

    for name in graph:
        if name not in order:
            visit(name)
    return circles


def test_modules_import_each_other_in_no_circle():
    assert circles_of(import_graph()) == []


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert sorted(circles_of(graph)) == [["a", "b", "c"], ["d", "e"]]


@pytest.mark.parametrize(("folder", "root"), [(SOURCE, "VirtserialError"), (SOURCE / "guest", "PortError")])
def test_every_error_is_in_the_tree_that_errors_py_draws(folder, root):
    bases = {
        node.name: node.bases[0].id
        for path in folder.rglob("*.py")
        for node in nodes_of(path)
        if isinstance(node, ast.ClassDef) and node.bases and isinstance(node.bases[0], ast.Name)
    }

    def descends(name):
        return name == root or (name in bases and descends(bases[name]))

    drawn, above = {}, [root]
    tree = ast.get_docstring(tree_of(folder / "errors.py"))
    for line in tree.splitlines():
        if "+- " in line:
            depth, name = line.index("+- ") // 4 + 1, line.split("+- ")[1].split()[0]
            del above[depth:]
            drawn[name] = above[-1]
            above.append(name)
    assert drawn == {name: base for name, base in bases.items() if name != root and descends(name)}


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
        for node in nodes_of(path):
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
        for node in nodes_of(path)
        if (isinstance(node, ast.Attribute) and node.attr == "pack_into")
        or (isinstance(node, ast.ImportFrom) and any(name.name == "pack_into" for name in node.names))
    ]
    assert wrong == [], "pack_into zeroes its target first: another process would see that"


def test_wait_for_is_nowhere():
    wrong = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in FILES
        for node in nodes_of(path)
        if isinstance(node, ast.Attribute) and node.attr == "wait_for" and ast.unparse(node.value) == "asyncio"
    ]
    assert wrong == [], "asyncio.wait_for swallows cancellations before Python 3.12: take asyncio.timeout"


def test_no_file_is_too_long():
    lengths = {str(path.relative_to(SOURCE)): len(path.read_text().splitlines()) for path in FILES + GUEST_FILES}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


WALK = re.compile(r"^\| [^|]+ \| ([\w/]+\.py) \| (?:(\w+)\.)?(\w+) \|$", re.MULTILINE)


def test_the_walks_of_the_architecture_name_what_exists():
    text = (SOURCE.parents[1] / "docs" / "architecture.md").read_text()
    steps = WALK.findall(text)
    assert len(steps) > 40
    missing = []
    for file, owner, name in steps:
        body = tree_of(SOURCE / file).body
        if owner:
            body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == owner), [])
        if not any(isinstance(node, ast.FunctionDef) and node.name == name for node in body):
            missing.append(f"{file} {owner}.{name}")
    assert missing == []


def test_the_table_of_rooms_is_that_of_the_source():
    text = (SOURCE.parents[1] / "docs" / "architecture.md").read_text()
    table = text.partition("| room | whose | subject |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| ")]
    rooms = {room.rstrip("/").removesuffix(".py") for row in rows for room in re.split(r"[ ,]+", row.strip())}
    assert rooms == set().union(*FLOORS)
