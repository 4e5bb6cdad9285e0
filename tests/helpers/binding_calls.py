"""The parts of a library's bindings that source code uses, found in its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.binding_signatures import METHOD, PROPERTY, Surface

SET = -1
"""In place of a number of arguments: the property is set."""
READ = -2
"""The member is read: a property, a constant or a class."""


@dataclass(frozen=True, order=True)
class Use:
    """A use of a member. owner: its class, "" for the module. arguments: how many, SET or READ."""

    owner: str
    name: str
    arguments: int
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.owner or 'module'}.{self.name}"

    @property
    def what(self) -> tuple[str, str, int]:
        """The use, wherever it is."""
        return self.owner, self.name, self.arguments

    def problem(self, found: Surface) -> str:
        """Why the bindings do not have it, in words; "" if they do."""
        member = found.get(self.owner, {}).get(self.name)
        if member is None:
            return f"{self}: there is no such member"
        if self.arguments == SET:
            fits = member.kind == PROPERTY and member.writable
            return "" if fits else f"{self} cannot be set"
        if self.arguments == READ:
            return f"{self} is a method" if member.kind == METHOD and self.owner else ""
        if member.kind != METHOD:
            return f"{self} cannot be called"
        if any(signature.takes(self.arguments) for signature in member.signatures):
            return ""
        return f"{self} takes not {self.arguments} arguments; it has {member.signatures}"


def uses(path: Path, roots: Mapping[str, str]) -> list[Use]:
    """The uses in one file.

    Args:
      roots: expressions that stand for an object of the library, such as "self._engine" -> its
        class; "" is the module.
    A call is `object.method(...)`, or `calls.value("failure", object.method, ...)`.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return sorted(_Finder(path.name, roots).uses(tree))


@dataclass(frozen=True)
class _Finder:
    file: str
    roots: Mapping[str, str]

    def uses(self, tree: ast.Module) -> Iterator[Use]:
        called: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield from self._call(node, called)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and id(node) not in called:
                is_set = isinstance(node.ctx, ast.Store)
                yield from self._use(node, SET if is_set else READ)

    def _call(self, call: ast.Call, called: set[int]) -> Iterator[Use]:
        if isinstance(call.func, ast.Attribute) and self._owner(call.func) is not None:
            called.add(id(call.func))
            yield from self._use(call.func, len(call.args))
        for index, argument in enumerate(call.args):
            rest = call.args[index + 1 :]
            if isinstance(argument, ast.Attribute) and index == 1 and _passes_on(call):
                called.add(id(argument))
                yield from self._use(argument, len(rest))
            if isinstance(argument, ast.Name) and argument.id == "setattr" and len(rest) == 3:
                owner, name = self.roots.get(ast.unparse(rest[0])), rest[1]
                names = [name.value] if isinstance(name, ast.Constant) else []
                if owner is not None:
                    for found in names:
                        yield Use(owner, str(found), SET, self.file, call.lineno)

    def _use(self, node: ast.Attribute, arguments: int) -> Iterator[Use]:
        owner = self._owner(node)
        if owner is not None:
            yield Use(owner, node.attr, arguments, self.file, node.lineno)

    def _owner(self, node: ast.Attribute) -> str | None:
        base = ast.unparse(node.value)
        if base in self.roots:
            return self.roots[base]
        if isinstance(node.value, ast.Attribute) and ast.unparse(node.value.value) in self.roots:
            outer = self.roots[ast.unparse(node.value.value)]
            return node.value.attr if outer == "" else None  # a member of a class of the module
        return None


def _passes_on(call: ast.Call) -> bool:
    """Whether it is a call of LibraryCalls, which calls its second argument with the rest."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in ("value", "done")
