"""Names under which a trace saves values, read from its source.

nnsight assigns a server's values to the caller's variables of the same names, so only names that
the trace itself saves are accepted.
"""

import ast
from collections.abc import Iterable


def saved_names(node: ast.With) -> tuple[set[str], set[str]]:
    """Return the names that a trace may save values under, and those that it always saves under."""
    possible, due = set(), set()
    # Without the statement `with` itself, whose names belong to the caller.
    for part in ast.walk(ast.Module(node.body, [])):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            possible.add(part.id)
        elif isinstance(part, ast.FunctionDef | ast.ClassDef):
            possible.add(part.name)
        elif isinstance(part, ast.Call) and _is_save(part):
            # A saved value may have got its name before the trace.
            receiver = [part.func.value] if isinstance(part.func, ast.Attribute) else []
            possible |= _names((*receiver, *part.args))
    # Only statements that always run: a branch or a loop may not.
    waiting = list(node.body)
    while waiting:
        part = waiting.pop()
        if isinstance(part, ast.With):
            waiting += part.body
        elif isinstance(part, ast.Assign) and _is_save(part.value):
            due |= _names(part.targets)
    return possible, due


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    """Return the names among some pieces of source."""
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def _is_save(part: ast.AST) -> bool:
    """Whether a piece of source is a call of `save`, as a function or as a method."""
    if not isinstance(part, ast.Call):
        return False
    return getattr(part.func, "attr", getattr(part.func, "id", None)) == "save"
