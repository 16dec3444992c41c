"""The shape of the project: who may import whom, and what a trace body may reach."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ORDER = [
    "robustness.refusal",
    # words: the standard library only
    "robustness.schedule",
    "robustness.sweep",
    "robustness.plan",
    # numbers: torch in and out, no model
    "robustness.kernels",
    "robustness.logits",
    "robustness.readout",
    "robustness.interpreter",
    "robustness.sublayers",
    "robustness.steps",
    "robustness.comparison",
    "robustness.scoring",
    "robustness.attention",
    "robustness.capture",
    "robustness.lens",
    "robustness.norms",
    "robustness.similarity",
    "robustness.cka",
    "robustness.metrics",
    "robustness.segmentation",
    # the outside world
    "robustness.local_file",
    "robustness.local_text",
    "robustness.encoding",
    "robustness.corpus",
    "robustness.model_contract",
    "robustness.checkpoint",
    "robustness.tensors",
    "robustness.answer",
    "robustness.remote",
    "robustness.flow",
    "robustness.model",
    "robustness.sandbox",
    "robustness.anatomy",
    "robustness.dissection",
    "robustness.weights",
    "robustness.processing",
    "robustness.measurement",
    # labels
    "robustness.uncertainty",
    "robustness.difference",
    "robustness.stopping",
    "robustness.changes",
    "robustness.container",
    "robustness.ownership",
    "robustness.lock",
    "robustness.contract",
    "robustness.results",
    "robustness.manifest",
    "robustness.directory",
    "robustness.batches",
    "robustness.token_file",
    "robustness.shard",
    # one trace each
    "robustness.memory",
    "robustness.work",
    "robustness.execution",
    "robustness.rebuilding",
    "robustness.generation",
    "robustness.export",
    "robustness.cost",
    "robustness.observation",
    "robustness.neurons",
    "robustness.items",
    "robustness.tasks",
    "probes.classifier",
    "probes.pairs",
    "probes.wic",
    "probes.windows",
    "probes.suffix",
    "probes.subjoiner",
    "recipes.terminal",
    "recipes.checkpoints",
    # an experiment as data, and what is read out of its files
    "recipes.recipe",
    "recipes.files",
    "recipes.published",
    "recipes.curves",
    "recipes.experiments.drop_and_swap",
    "recipes.experiments.representations",
    "recipes.experiments.local_attention",
    "recipes.experiments.subjoiner",
    "recipes.experiments.norm_ratio",
    "recipes.experiments.word_in_context",
    "recipes.experiments.prediction_neurons",
    "recipes.experiments.lens_entropy",
    "recipes.experiments.suffix",
    "recipes.experiments.mlp_norm",
    "recipes.experiments.repetition",
    "recipes.experiments.benchmarks",
    "recipes.experiments.similarity",
    "recipes.experiments.hypothesis",
    "recipes.catalogue",
    "recipes.verdicts",
    "recipes.compare",
    "recipes.stages",
    # files to text and figures
    "recipes.tables",
    "recipes.drawing",
    "recipes.panels",
    "recipes.diagrams",
    "recipes.figures",
    "recipes.report",
    "recipes.run",
    "recipes.ngram",
    "recipes.card",
    "recipes.training_tokenizer",
    "recipes.training_text",
    "recipes.training_state",
    "recipes.pretrain",
    "recipes.sampling",
    "recipes.parameters",
    "recipes.command",
    "cli",
]
"""A module imports only from above it in this list."""

WORDS = ORDER[: ORDER.index("robustness.kernels")]

TRAVELLING = ORDER[ORDER.index("robustness.kernels") : ORDER.index("robustness.metrics")]
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
            found |= {name if name in ORDER else str(node.module) for name in names}
    return found


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_above(module):
    assert not imports(module) & set(ORDER[ORDER.index(module) :])


def test_every_module_has_its_place():
    files = [
        *ROOT.glob("robustness/*.py"),
        *ROOT.glob("probes/*.py"),
        *ROOT.glob("recipes/**/*.py"),
    ]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    assert {name for name in names if not name.endswith("__init__")} | {"cli"} == set(ORDER)


@pytest.mark.parametrize("module", WORDS)
def test_words_need_the_standard_library_alone(module):
    allowed = {"dataclasses", "collections", "contextlib", "itertools", "operator", "random"}
    allowed |= {"re", "typing", "robustness"}
    assert {name.partition(".")[0] for name in imports(module)} <= allowed


def test_only_the_owner_of_a_matter_deals_with_it():
    for module in set(ORDER) - {"cli"}:
        calls = {
            node.func.id
            for node in ast.walk(tree(module))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "print" not in calls, module
        assert "open" not in calls, module
    writing = {"to_netcdf", "savefig", "write_text", "write_bytes", "save_pretrained"}
    for module in set(ORDER) - {"robustness.results"}:
        outside = {
            node.attr
            for node in ast.walk(tree(module))
            if isinstance(node, ast.Attribute) and node.attr in writing
        }
        # Passed to `write_whole`, which alone decides where a file goes.
        assert not outside or "robustness.results" in imports(module), module
    tracing = {"remote", "model", "anatomy", "dissection", "execution", "observation"}
    for module in set(ORDER) - {f"robustness.{name}" for name in tracing}:
        assert not {name for name in imports(module) if name.partition(".")[0] == "nnsight"}


DOORS = {f"robustness.{name}" for name in ("ownership", "lock", "results", "directory")}
"""What replaces and removes, after it has made sure that it may."""

KNOWN = {
    ("robustness.token_file", "unlink"),  # a part, in a directory that is checked to be of parts
    ("robustness.model", "mkdir"),  # for weights that are kept on the disk
    ("recipes.pretrain", "mkdir"),
    ("recipes.pretrain", "unlink"),  # its checkpoint, and the text that it is made of
}
"""What is done elsewhere, to what is known to be the module's own."""

CHANGING = {"unlink", "rmdir", "rmtree", "mkdir", "makedirs", "removedirs", "touch", "symlink_to",
    "hardlink_to", "truncate", "ftruncate", "chmod", "copyfile", "copytree"}  # fmt: skip


def changes_the_disk(call: ast.Call) -> bool:
    """Whether a call removes, renames or makes something, or opens a file to write."""
    if not isinstance(call.func, ast.Attribute):
        return False
    of, name = call.func.value, call.func.attr
    owner = of.id if isinstance(of, ast.Name) else ""
    given = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
    modes = [str(each.value) for each in given if isinstance(each, ast.Constant)]
    writes = name == "open" and any(re.fullmatch("[rwaxbt]*[wax+][bt+]*", mode) for mode in modes)
    moves = owner == "os" and name in {"replace", "rename", "renames", "remove", "link", "symlink"}
    return name in CHANGING or (owner == "shutil" and name == "move") or moves or writes


def test_what_is_on_the_disk_is_changed_through_few_doors():
    found = set()
    for module in set(ORDER) - DOORS:
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Call) and changes_the_disk(node):
                found.add((module, node.func.attr))
    assert found <= KNOWN, found - KNOWN


def test_what_changes_the_disk_is_seen():
    for text in ("a.unlink()", "os.replace(a, b)", "a.open('wb')", "shutil.rmtree(a)", "a.mkdir()"):
        assert changes_the_disk(ast.parse(text).body[0].value), text
    for text in ("a.open('rb')", "text.replace('a', 'b')", "data.rename(a='b')", "a.open()"):
        assert not changes_the_disk(ast.parse(text).body[0].value), text


@pytest.mark.parametrize("module", TRAVELLING)
def test_what_travels_keeps_to_what_survives_the_journey(module):
    """Each of these fails, or is silently wrong, on a server that gets the source alone."""
    top = tree(module)
    allowed = {"torch", "typing", "collections.abc", "robustness", *TRAVELLING}
    assert imports(module) <= allowed
    top_level = [node for node in top.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    every = [node for node in ast.walk(top) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert top_level == every, "imports stand at the top"
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
