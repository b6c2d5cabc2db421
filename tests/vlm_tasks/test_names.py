"""Nothing outside `vlm/tasks/` asks which task it is given: a task's name is data, never a fork."""

import ast
from pathlib import Path

import pytest

from vlm.tasks import TASKS

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for folder in ("vlm", "tasks", "eval")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ROOT / "vlm" / "tasks" not in path.parents
]


def names_compared(source: str) -> list[str]:
    """Names of tasks that a source text compares something with, by `==`, `in`, or a case of a match."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        else:
            continue
        for side in sides:
            parts = side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]
            found += [part.value for part in parts if isinstance(part, ast.Constant) and part.value in TASKS]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_outside_the_tasks_compares_a_name(path):
    assert names_compared(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        'x = task == "caption"',
        'x = "answer" != name',
        'if task in ("ground", "entail"): pass',
        'match task:\n    case "summarize":\n        pass',
    ],
)
def test_a_fork_would_be_found(source):
    assert names_compared(source)


def test_names_as_data_are_allowed():
    assert not names_compared('model.run("caption", photos)\nmix = {"answer": 1.0}\nok = record["answer"] == "yes"')
