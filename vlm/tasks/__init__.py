"""The tasks, by name. A task is one file of this folder, see `vlm.tasks.base`; it is found here by lying here."""

import pkgutil
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from vlm.errors import ArgumentError, ModelError
from vlm.files.bundle import Bundle
from vlm.tasks.base import Task, TrainingExample, TrainingRules
from vlm.tasks.caption import Caption

__all__ = ["CAPTION_TASKS", "TASKS", "Task", "TrainingExample", "TrainingRules", "bind", "check_names", "find_tasks"]


def find_tasks(folders: Iterable[str]) -> dict[str, type[Task]]:
    """The tasks whose files lie in these folders of the package, by name, in the order of their names."""
    found: dict[str, type[Task]] = {}
    for module in pkgutil.iter_modules(folders):
        for item in vars(import_module(f"{__name__}.{module.name}")).values():
            if isinstance(item, type) and issubclass(item, Task) and item is not Task:
                found[item.name] = item
    return dict(sorted(found.items()))


TASKS: dict[str, type[Task]] = find_tasks(__path__)
# the task that captions photos in a language, by the language's code
CAPTION_TASKS = {kind.language: name for name, kind in TASKS.items() if issubclass(kind, Caption)}


def check_names(names: Iterable[str]) -> None:
    """Refuse names that are not tasks.

    Raises:
        ArgumentError: the first such name.
    """
    if unknown := [name for name in names if name not in TASKS]:
        raise ArgumentError(f"task {unknown[0]!r} is unknown; this version knows {', '.join(TASKS)}")


def bind(bundle: Bundle, tasks: Mapping[str, Mapping[str, Any]], rules: TrainingRules | None = None) -> dict[str, Task]:
    """The tasks of a loaded model.

    Args:
        bundle: the model.
        tasks: names of tasks, each with the settings that differ from the task's own.
        rules: what training learns from.

    Raises:
        ModelError: a name is not a task, or a prompt is not text.
    """
    where = repr(str(bundle.folder / "config.json")) if bundle.folder else repr(bundle.name)
    try:
        check_names(tasks)
    except ArgumentError as error:
        raise ModelError(f"{where}: {error}") from None
    for name, settings in tasks.items():
        if not isinstance(settings.get("prompt", ""), str):
            raise ModelError(f"{where}: {name}={dict(settings)!r} must have a text as its prompt")
    size = bundle.transform.size
    return {name: TASKS[name](bundle.tokenizer, size, settings, rules) for name, settings in tasks.items()}
