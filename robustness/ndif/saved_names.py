"""Names that a trace saves values by, read from its source.

What a server sends is put into the caller's variables, and so it may only have names that the trace
itself saves.
"""

import ast


def saved_names(node: ast.With) -> tuple[set[str], set[str]]:
    """Return the names by which a trace may save values, and those by which it does in any case."""
    known, due = set(), set()
    # Not the statement `with` itself: names in it are of the caller's.
    for part in ast.walk(ast.Module(node.body, [])):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            known.add(part.id)
        elif isinstance(part, ast.FunctionDef | ast.ClassDef):
            known.add(part.name)
        elif isinstance(part, ast.Call) and _is_save(part):
            # What is saved may have its name from before.
            receiver = [part.func.value] if isinstance(part.func, ast.Attribute) else []
            known |= {each.id for each in (*receiver, *part.args) if isinstance(each, ast.Name)}
    waiting = list(node.body)
    while waiting:
        part = waiting.pop()
        if isinstance(part, ast.With):
            waiting += part.body
        elif isinstance(part, ast.Assign) and _is_save(part.value):
            due |= {target.id for target in part.targets if isinstance(target, ast.Name)}
    return known, due


def _is_save(part: ast.AST) -> bool:
    """Whether a piece of source is a call of `save`, as a function or as a method."""
    if not isinstance(part, ast.Call):
        return False
    return getattr(part.func, "attr", getattr(part.func, "id", None)) == "save"
