"""Imports point one way: the order that CONTRIBUTING.md draws, read from the source of every module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module may import modules of a lower level, and of its own where that makes no circle. The longest prefix counts;
# of `vlm` itself, only the package's own file.
LEVELS = {
    "vlm.errors": 0,
    "vlm.models": 1,
    "vlm.files.atomic": 1,
    "vlm.image": 2,
    "vlm.tokenizer": 2,
    "vlm.data": 3,
    "vlm.decoding": 3,
    "vlm.encoders": 3,
    "vlm.files": 3,
    "vlm.predictor": 4,
    "vlm.tasks": 5,
    "vlm.diffusion": 5,
    "vlm.model": 6,
    "vlm": 6,  # the package itself, which imports its public names on first use
    "vlm.search": 7,
    "vlm.export": 7,
    "vlm.convert": 7,
    "vlm.train": 8,
    "eval": 9,
    "tasks": 10,
}
# allowed inside functions: a name with `ofa:` is of a foreign checkpoint, which is converted while it is loaded; the
# harness reads its arguments and ends as all commands do
EXCEPTIONS = {("vlm.files.bundle", "vlm.convert.ofa.checkpoint"), ("eval.__main__", "tasks._command")}
# what a package may be imported by, apart from itself
ONLY_BY = {"vlm.train": ("tasks", "eval.validation"), "vlm.convert": ("tasks", "vlm.train"), "tasks": ()}


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def level(module: str) -> int:
    """The level of a module.

    Raises:
        LookupError: it has none; LEVELS must say where a new part of `vlm` stands.
    """
    found = [package for package in LEVELS if inside(module, package) and (package != "vlm" or module == "vlm")]
    if not found:
        raise LookupError(f"{module} has no level; give it one")
    return LEVELS[max(found, key=len)]


def modules() -> dict[str, Path]:
    """Every module of the project, by its dotted name."""
    files = [path for package in ("vlm", "tasks", "eval") for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(source: str, known: set[str]) -> tuple[set[str], set[str]]:
    """The project's modules that a source text imports: anywhere in it, and when it is imported itself."""
    everywhere: set[str] = set()
    at_once: set[str] = set()

    def visit(node: ast.AST, now: bool) -> None:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full, or this test would not see them"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else str(node.module) for name in names]
        else:
            names = []
        found = {name for name in names if name in known}
        everywhere.update(found)
        if now:
            at_once.update(found)
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        lazy = lazy or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        for child in ast.iter_child_nodes(node):
            visit(child, now and not lazy)

    visit(ast.parse(source), True)
    return everywhere, at_once


def violations(module: str, source: str, known: set[str]) -> list[str]:
    """What a module of this source text must not import."""
    everywhere, at_once = imports(source, known)
    found = []
    for other in sorted(everywhere):
        if (module, other) in EXCEPTIONS and other not in at_once:
            continue
        if level(other) > level(module):
            found.append(f"{module} imports {other}, which stands above it")
        for package, users in ONLY_BY.items():
            allowed = inside(module, package) or any(inside(module, user) for user in users)
            if inside(other, package) and not allowed:
                found.append(f"{module} imports {other}, which is for {users} only")
        if inside(module, "vlm.models") and not (inside(other, "vlm.models") or other == "vlm.errors"):
            found.append(f"{module} imports {other}; networks import nothing of ours but networks")
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, if there is one."""
    state: dict[str, int] = {}

    def walk(module: str, path: list[str]) -> list[str]:
        if state.get(module) == 2:
            return []
        if state.get(module) == 1:
            return [*path[path.index(module) :], module]
        state[module] = 1
        for other in sorted(graph.get(module, ())):
            if found := walk(other, [*path, module]):
                return found
        state[module] = 2
        return []

    return next((found for module in graph if (found := walk(module, []))), [])


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_what_stands_below_it(module):
    known = modules()
    assert violations(module, known[module].read_text(encoding="utf-8"), set(known)) == []


def test_no_module_needs_itself_to_be_imported():
    known = modules()
    graph = {name: imports(path.read_text(encoding="utf-8"), set(known))[1] - {name} for name, path in known.items()}
    assert circle(graph) == []


@pytest.mark.parametrize("package", ["vlm", "vlm.files"])
def test_packages_that_lower_levels_lie_in_import_nothing(package):
    """Python runs a package's file before that of any module in it."""
    known = modules()
    assert imports(known[package].read_text(encoding="utf-8"), set(known))[1] == set()


def test_every_exception_is_needed():
    known = modules()
    for module, other in EXCEPTIONS:
        assert other in imports(known[module].read_text(encoding="utf-8"), set(known))[0]


@pytest.mark.parametrize(
    "module, source",
    [
        ("vlm.models.pair", "from vlm.tokenizer import Tokenizer"),
        ("vlm.models.pair", "def f():\n    import vlm.image"),
        ("vlm.predictor", "from vlm import tasks"),
        ("vlm.decoding.trie", "from vlm.predictor import pad"),
        ("vlm.model", "from vlm.train.run import train"),
        ("vlm.tasks.caption", "from eval.metrics import cider"),
        ("eval.run", "from tasks.caption import main"),
        ("eval.run", "from vlm.convert.vqgan import load_vqgan"),
        ("eval.report", "from vlm.train.config import Phase"),
        ("vlm.search.build", "class A:\n    if TYPE_CHECKING:\n        from vlm.train.config import Phase"),
        ("vlm.files.hub", "def f():\n    from vlm.convert.ofa.checkpoint import load_ofa"),
        ("vlm.files.bundle", "from vlm.convert.ofa.checkpoint import load_ofa"),
        ("vlm.tokenizer", "from vlm.files import atomic, hub"),
        ("vlm.models.pair", "from vlm.files.atomic import write_text"),
        ("vlm.image", "import vlm"),
    ],
)
def test_a_wrong_import_would_be_found(module, source):
    assert violations(module, source, set(modules()))


@pytest.mark.parametrize(
    "module, source",
    [
        ("vlm.tokenizer", "import numpy\nfrom vlm.files.atomic import write_text"),
        ("vlm.search.build", "if TYPE_CHECKING:\n    from vlm.model import Model"),
        ("vlm.files.bundle", "def f():\n    from vlm.convert.ofa.checkpoint import load_ofa"),
        ("vlm.train.run", "from vlm.convert import imagenet"),
        ("eval.validation", "from vlm.train.run import Measures"),
        ("tasks.train", "import eval.validation\nimport vlm.train.run"),
    ],
)
def test_a_right_import_is_let_through(module, source):
    assert violations(module, source, set(modules())) == []


def test_a_new_part_without_a_level_would_be_found():
    with pytest.raises(LookupError, match=r"vlm\.serve has no level"):
        violations("vlm.serve", "from vlm.model import Model", set(modules()))


def test_imports_that_wait_are_told_from_those_that_do_not():
    first, second = "import vlm.predictor", "def f():\n    import vlm.image\nif TYPE_CHECKING:\n    import vlm.image"
    known = set(modules())
    assert imports(first, known)[1] == {"vlm.predictor"} and imports(second, known)[1] == set()


def test_a_circle_would_be_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
