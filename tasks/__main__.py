"""One console command for all tasks: `vlm NAME ...` is `python -m tasks.NAME ...`."""

import ast
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from tasks._command import exit_code
from vlm.errors import ArgumentError


def commands() -> dict[str, str]:
    """Names of the tasks and the first line of what they say of themselves; nothing is imported."""
    files = sorted(p for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))
    docs = {p.stem: ast.get_docstring(ast.parse(p.read_text(encoding="utf-8"))) or "" for p in files}
    return {name: doc.splitlines()[0] for name, doc in docs.items() if doc}


def main(argv: Sequence[str] | None = None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] not in commands():
        return exit_code(lambda: overview(args))
    return import_module(f"tasks.{args[0]}").main(args[1:])


def overview(args: Sequence[str]) -> None:
    """Print what the commands do.

    Raises:
        ArgumentError: the user named another command.
    """
    known = commands()
    if args and args[0] not in ("-h", "--help"):
        raise ArgumentError(f"no command {args[0]!r}; known: {', '.join(known)}")
    print("usage: vlm COMMAND [OPTIONS]    (vlm COMMAND --help lists its options)\n")
    print("\n".join(f"  {name:<14} {line}" for name, line in known.items()))


if __name__ == "__main__":
    sys.exit(main())
