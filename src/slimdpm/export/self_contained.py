"""Definitions of slimdpm as one module that imports nothing of it: what a folder carries that loads without slimdpm.

Taken from the sources with everything of slimdpm that they use, and left as they are written.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

_ROOT = "slimdpm"
Name = tuple[str, str]  # a module of slimdpm, and what it defines


def self_contained(about: str, *wanted: Any) -> str:
    """The source of a module that holds these classes and functions, and all that they use.

    Args:
        about: its docstring.
        wanted: classes and functions of slimdpm.

    Raises:
        ValueError: if two modules define different things by one name.
    """
    order: dict[Name, str] = {}
    imports: dict[str, None] = {}
    for thing in wanted:
        _collect((thing.__module__, thing.__name__), order, imports)
    names = [name for _, name in order]
    if len(set(names)) < len(names):
        raise ValueError(f"of several modules: {sorted({name for name in names if names.count(name) > 1})}")
    head = "\n".join([f'"""{about}"""', "", "from __future__ import annotations", "", *sorted(imports)])
    return "\n\n\n".join([head, *dict.fromkeys(order.values())]) + "\n"  # a statement may define several


def _collect(name: Name, order: dict[Name, str], imports: dict[str, None]) -> None:
    """Put a definition after those that it uses, and note the imports from other libraries."""
    module = _Module.of(name[0])
    if name[1] in module.imported:  # handed on by a package
        return _collect(module.imported[name[1]], order, imports)
    if name in order:
        return None
    node = module.definitions[name[1]]
    order[name] = ""  # its place, should a definition use itself
    for used in [*_names(node), *filter(module.is_alias, _annotations(node))]:
        if used in module.imported:
            _collect(module.imported[used], order, imports)
        elif used in module.definitions:
            _collect((name[0], used), order, imports)
    for used in {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} & module.libraries.keys():
        imports[module.libraries[used]] = None
    del order[name]
    order[name] = module.text(node)
    return None


def _names(node: ast.AST) -> Iterator[str]:
    """Those that a definition uses when it runs, in the order of their lines."""
    if isinstance(node, ast.Name):
        yield node.id
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _names(child)


def _annotations(node: ast.AST) -> Iterator[str]:
    """The names in a definition's annotations."""
    for part in ast.walk(node):
        for field in ("annotation", "returns"):
            for child in ast.walk(getattr(part, field, None) or ast.Pass()):
                if isinstance(child, ast.Name):
                    yield child.id


class _Module:
    """A module of slimdpm, read: what it defines, and from where it imports."""

    def __init__(self, name: str):
        self.source = inspect.getsource(importlib.import_module(name))
        self.definitions: dict[str, ast.stmt] = {}
        self.imported: dict[str, Name] = {}
        self.libraries: dict[str, str] = {}
        for node in ast.parse(self.source).body:
            for defined in _defined(node):
                self.definitions[defined] = node
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._note(node)

    @staticmethod
    @cache
    def of(name: str) -> _Module:
        return _Module(name)

    def _note(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            called = alias.asname or alias.name
            if isinstance(node, ast.Import):
                self.libraries[called.partition(".")[0]] = ast.unparse(ast.Import([alias]))
            elif (node.module or "").startswith(_ROOT):
                self.imported[called] = (node.module or "", alias.name)
            else:
                self.libraries[called] = ast.unparse(ast.ImportFrom(node.module, [alias], 0))

    def is_alias(self, name: str) -> bool:
        """Whether a name, defined or imported here, is one that annotations have for a type."""
        if name in self.imported:
            place, name = self.imported[name]
            return _Module.of(place).is_alias(name)
        return isinstance(self.definitions.get(name), ast.Assign)

    def text(self, node: ast.stmt) -> str:
        """A statement with its decorators and the comments at its lines' ends."""
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
        return "\n".join(self.source.splitlines()[first - 1 : node.end_lineno])


def _defined(node: ast.stmt) -> Iterable[str]:
    """The names that a statement gives something to."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
