"""Run the community's harnesses with our models among theirs: `python -m eval.adapters HARNESS ...`."""

import sys
from collections.abc import Sequence
from importlib import import_module

from vlm.errors import ArgumentError, VLMError

PROG = "python -m eval.adapters"
HARNESSES = ("lmms_eval", "clip_benchmark")
USAGE = f"""\
usage: {PROG} lmms_eval --model vlm --model_args pretrained=M --tasks TASK ...
       {PROG} clip_benchmark eval --model_type vlm --model vlm --pretrained M --dataset NAME ...

The arguments are those of the harness, which needs its own package; --help after its name shows them all."""


def main(argv: Sequence[str] | None = None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    try:
        if args[0] not in HARNESSES:
            raise ArgumentError(f"no harness {args[0]!r}; choose one of: {', '.join(HARNESSES)}")
        adapter = import_module(f"eval.adapters.{args[0]}")
        sys.argv = [f"{PROG} {args[0]}", *args[1:]]  # where both harnesses look for their arguments
        adapter.run()
    except VLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
