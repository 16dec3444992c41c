"""The shape of the project: who may import whom, what travels, and what changes the disk."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINTER = Path(sys.executable).with_name("lint-imports")


def modules(*folders: str) -> list[str]:
    """Return the names of all modules in some folders, and in the folders in them."""
    files = [file for folder in folders for file in sorted(ROOT.glob(f"{folder}/**/*.py"))]
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]


EVERY = [*modules("robustness", "probes", "recipes"), "cli"]
TYPES = "robustness.trace.types"
"""Types of what passes through a trace; type checkers alone read it."""

TRAVELLING = [module for module in modules("robustness/trace") if module != TYPES]
"""What a trace body reaches: it goes to a server as source text."""


def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())


def imports(module: str) -> set[str]:
    """Return the modules that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in EVERY else str(node.module) for name in names}
    return found


def test_a_room_imports_only_from_the_rooms_below_it():
    lint = subprocess.run([LINTER, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert lint.returncode == 0, lint.stdout


def test_an_arrow_upwards_is_found(tmp_path):
    for name in ("robustness", "probes", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "robustness").unlink()
    subprocess.run(["cp", "-r", str(ROOT / "robustness"), str(tmp_path / "robustness")], check=True)
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    planted = tmp_path / "robustness" / "errors.py"
    planted.write_text(planted.read_text() + "\nimport robustness.files.netcdf\n")
    lint = subprocess.run([LINTER, "--no-cache"], cwd=tmp_path, capture_output=True, text=True)
    assert lint.returncode == 1 and "errors" in lint.stdout


@pytest.mark.parametrize("module", EVERY)
def test_a_module_can_be_read_in_one_sitting(module):
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            described = ast.get_docstring(node) is not None and len(node.body) > 1
            first = node.body[1 if described else 0]
            assert node.end_lineno - first.lineno < 60, node.name


@pytest.mark.slow
def test_nothing_imports_the_command_line():
    assert not [module for module in EVERY if module != "cli" and "cli" in imports(module)]


@pytest.mark.slow
def test_one_room_prints_and_none_opens_files_by_bare_open():
    for module in EVERY:
        calls = {
            node.func.id
            for node in ast.walk(tree(module))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"print", "open"}, module


DOORS = {
    f"robustness.files.{name}"
    for name in ("ownership", "lock", "atomic", "netcdf", "figures", "directory", "exchange")
}
"""What writes, replaces and removes, after it has made sure that it may."""

KNOWN = {
    ("robustness.files.manifest", "write_text"),
    ("robustness.healing.maps_file", "write_bytes"),
    ("robustness.models.placement", "mkdir"),  # for weights that are kept on the disk
    ("robustness.reordered.exporting", "save_pretrained"),
    ("robustness.reordered.exporting", "write_text"),
    ("robustness.sweeps.token_file", "Dataset"),
    ("robustness.sweeps.token_file", "to_netcdf"),
    ("robustness.sweeps.token_merging", "Dataset"),
    ("robustness.sweeps.token_merging", "to_netcdf"),
    ("robustness.sweeps.token_parts", "rename"),
    ("robustness.sweeps.token_parts", "unlink"),  # a part, in a directory that is checked
    ("recipes.report.svg", "savefig"),  # into memory
    ("recipes.report.page", "write_text"),
    ("recipes.training.distilling", "write_text"),
    ("recipes.training.place", "mkdir"),
    ("recipes.training.place", "unlink"),  # the checkpoint of a training that is finished
    ("recipes.training.pretraining", "save_pretrained"),
    ("recipes.training.pretraining", "write_text"),
    ("recipes.training.sampling", "write_bytes"),
    ("recipes.training.state", "save_file"),
}
"""What is written elsewhere: into a place that a door gives, or to what is the module's own."""

CHANGING = {
    "unlink", "rmdir", "rmtree", "mkdir", "makedirs", "removedirs", "touch", "symlink_to",
    "hardlink_to", "truncate", "ftruncate", "chmod", "copyfile", "copytree", "savetxt",
    "to_netcdf", "savefig", "write_text", "write_bytes", "save_pretrained", "save_file", "to_csv",
    "to_json", "to_zarr", "to_pickle", "Dataset",
}  # fmt: skip


def changes_the_disk(call: ast.Call) -> str:
    """Return by which name a call removes, renames, makes or writes a file, or nothing."""
    if isinstance(call.func, ast.Name):
        return call.func.id if call.func.id in CHANGING else ""
    if not isinstance(call.func, ast.Attribute):
        return ""
    of, name = call.func.value, call.func.attr
    owner = of.id if isinstance(of, ast.Name) else ""
    if owner == "xr":
        return ""
    given = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
    modes = [str(each.value) for each in given if isinstance(each, ast.Constant)]
    writes = name == "open" and any(re.fullmatch("[rwaxbt]*[wax+][bt+]*", mode) for mode in modes)
    moves = owner in {"os", "shutil"} and name in {
        "replace", "rename", "renames", "remove", "link", "symlink", "move",
    }  # fmt: skip
    # A path is renamed by one place; a Dataset by names.
    renames = name == "rename" and len(call.args) == 1 and not call.keywords
    a_path = renames and not isinstance(call.args[0], (ast.Constant, ast.Dict, ast.DictComp))
    return name if name in CHANGING or moves or writes or a_path else ""


@pytest.mark.slow
def test_the_disk_is_changed_through_few_doors():
    found = set()
    for module in set(EVERY) - DOORS:
        for node in ast.walk(tree(module)):
            name = changes_the_disk(node) if isinstance(node, ast.Call) else ""
            if name:
                found.add((module, name))
    assert found - KNOWN == set(), "goes through robustness.files"
    assert KNOWN - found == set(), "is not done any more"


@pytest.mark.parametrize(
    "text",
    ["a.unlink()", "os.replace(a, b)", "a.open('wb')", "shutil.rmtree(a)", "a.mkdir()",
     "netCDF4.Dataset(a)", "save_file(a, b)", "a.rename(b)", "a.write_text('')", "os.link(a, b)",
     "data.to_netcdf(a)", "a.open(mode='a')"],
)  # fmt: skip
def test_what_changes_the_disk_is_seen(text):
    assert changes_the_disk(ast.parse(text).body[0].value)


@pytest.mark.parametrize(
    "text",
    ["a.open('rb')", "text.replace('a', 'b')", "data.rename(a='b')", "a.open()", "xr.Dataset(a)"],
)
def test_what_leaves_the_disk_alone_is_left_alone(text):
    assert not changes_the_disk(ast.parse(text).body[0].value)


def imports_for_type_checkers(top: ast.Module) -> list[ast.stmt]:
    """Return the imports that stand under `if TYPE_CHECKING:`."""
    guarded = [node for node in top.body if isinstance(node, ast.If)]
    assert all(ast.unparse(node.test) == "TYPE_CHECKING" for node in guarded)
    return [statement for node in guarded for statement in node.body]


def named_within_functions(top: ast.Module) -> set[str]:
    """Return the names that are looked up when a function runs, in annotations of inner ones too.

    Those of a function's own signature, and of its local variables, are not looked up.
    """
    found = set()
    for function in [node for node in ast.walk(top) if isinstance(node, ast.FunctionDef)]:
        for statement in function.body:
            inside = list(ast.walk(statement))
            unread = [node.annotation for node in inside if isinstance(node, ast.AnnAssign)]
            skipped = {id(name) for annotation in unread for name in ast.walk(annotation)}
            names = [node for node in inside if isinstance(node, ast.Name)]
            found |= {name.id for name in names if id(name) not in skipped}
    return found


def test_a_name_that_is_not_there_on_a_server_is_seen():
    text = "def outer(a: Kept) -> Kept:\n    b: Kept = a\n    def inner(c: Lost): return c\n"
    assert named_within_functions(ast.parse(text)) >= {"Lost"}
    assert "Kept" not in named_within_functions(ast.parse(text))


@pytest.mark.parametrize("module", TRAVELLING)
def test_what_travels_keeps_to_what_survives_the_journey(module):
    """Each of these fails, or is silently wrong, on a server that gets the source alone."""
    top = tree(module)
    standard = {"__future__", "torch", "typing", "collections.abc", "contextlib"}
    assert imports(module) <= {*standard, "robustness.trace", *TRAVELLING, TYPES}
    top_level = [node for node in top.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    every = [node for node in ast.walk(top) if isinstance(node, (ast.Import, ast.ImportFrom))]
    for_types = imports_for_type_checkers(top)
    assert {node.module for node in for_types} <= {TYPES}
    assert not [node for node in top_level if getattr(node, "module", "") == TYPES]
    assert [*top_level, *for_types] == every, "imports stand at the top"
    names = {alias.name for node in for_types for alias in node.names}
    assert not names & named_within_functions(top), "is not there on a server"
    for node in ast.walk(top):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            assert not node.decorator_list, f"{node.name} is decorated"
        if isinstance(node, ast.ClassDef):
            assert not node.bases, f"{node.name} has a base class"
        assert not isinstance(node, (ast.Global, ast.Nonlocal)), "nothing outside is changed"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"super", "print", "open"}
        if isinstance(node, ast.Attribute):
            assert node.attr != "_module", "only envoys are called"
