"""`NamedTuple`: typing.NamedTuple, for what a device process reads while it starts.

The standard's compiles each annotation, three times the work, and the first compile() of a process makes all classes of
`ast`: 1,500 objects, 0.2 MiB of each process.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:

    class _Maker(type):
        def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, namespace)
            fields = namespace["__annotations__"]
            defaults = {field: namespace.pop(field) for field in fields if field in namespace}
            if [*fields][len(fields) - len(defaults) :] != [*defaults]:
                raise TypeError(f"{name}: a field without a default follows one with a default")
            module = namespace.pop("__module__")
            made = collections.namedtuple(name, fields, defaults=defaults.values(), module=module)  # noqa: PYI024
            for key, value in namespace.items():
                setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_Maker):
        """See typing.NamedTuple."""
