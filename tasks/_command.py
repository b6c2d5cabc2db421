"""What every command shares: from arguments to an exit code, options by their usual names, and quick loading."""

import dataclasses
import gc
import io
import json
import logging
import os
import re
import sys
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any, TypeVar

import tyro

from vlm.errors import ArgumentError, VLMError

Args = TypeVar("Args")

# options of commands, by the names that users of transformers know, and the fields of `GenerationConfig` they set
SEARCH_OPTIONS = {
    "num_beams": "beams",
    "max_length": "max_tokens",
    "sample": "sample",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
}
# arguments of Python functions that options are named after
SAME_NAME = (
    "batch_size", "exact_rows", "image_size", "limit", "num_captions", "num_images", "prefix", "rerank", "seed",
    "tokenizer", "top",
)  # fmt: skip
# exit codes of a shell: 128 and the number of the signal that ends a command
INTERRUPTED, CLOSED_PIPE = 130, 141
# packages whose remarks and retries are not for users of a command
NOISY = ("root", "huggingface_hub", "urllib3", "httpx", "timm", "open_clip", "transformers", "filelock")


def command(
    name: str, kind: type[Args], run: Callable[[Args], int | None], doc: str | None, argv: Sequence[str] | None
) -> int:
    """Read the arguments of `vlm NAME` and do what they say.

    Args:
        name: of the command.
        kind: dataclass of its arguments.
        run: does the work; what it returns is the exit code, None is 0.
        doc: what `--help` says first.
        argv: the arguments; None: those of the process.

    Returns:
        The exit code, see `exit_code`.
    """
    return exit_code(lambda: run(parse(f"vlm {name}", kind, doc, argv)))


def parse(prog: str, kind: Any, doc: str | None, argv: Sequence[str] | None, **options: Any) -> Any:
    """Read the arguments of a command; `--help` ends the process.

    Args:
        prog: how the user calls the command.
        kind: dataclass of its arguments; of a command with subcommands, a dataclass by name of each.
        doc: what `--help` says first.
        argv: the arguments; None: those of the process.
        options: passed to `tyro.cli`.

    Raises:
        ArgumentError: an argument is unknown, missing, or has a value of another type.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    kinds = list(kind.values()) if isinstance(kind, dict) else [kind]
    several = {name for one in kinds for name in repeatable(one)}
    known = {"--" + field.name.replace("_", "-") for one in kinds for field in dataclasses.fields(one)}
    check_once(given, known - several)
    given = one_value_each(given, several)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            if isinstance(kind, dict):
                return tyro.extras.subcommand_cli_from_dict(kind, args=given, prog=prog, description=doc)
            config = (tyro.conf.AvoidSubcommands,)
            return tyro.cli(kind, args=given, prog=prog, description=doc, config=config, **options)
    except SystemExit as end:
        if not end.code:
            raise
        raise ArgumentError(in_one_line(said.getvalue(), prog)) from None


def check_once(argv: Sequence[str], options: set[str]) -> None:
    """Refuse an option of one value that is given twice, of which the first would be forgotten.

    Raises:
        ArgumentError: see above.
    """
    given: set[str] = set()
    for argument in argv:
        if argument == "--":
            return
        name = argument.partition("=")[0].replace("_", "-")
        if name in options:
            if name in given:
                raise ArgumentError(f"{name} is given twice; give it once")
            given.add(name)


def repeatable(kind: Any) -> set[str]:
    """The options of a dataclass of arguments that may be given several times."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {
        "--" + field.name.replace("_", "-")
        for field in dataclasses.fields(kind)
        if tyro.conf.UseAppendAction in getattr(hints[field.name], "__metadata__", ())
    }


def one_value_each(argv: Sequence[str], options: set[str]) -> list[str]:
    """Arguments in which each of these options has one value: `--image a b` becomes `--image a --image b`.

    A shell writes the photos that match `photos/*.jpg` after one `--image`.
    """
    found: list[str] = []
    option = None
    for place, argument in enumerate(argv):
        if argument.startswith("-") and argument != "-":
            if argument == "--":
                return found + list(argv[place:])
            name = argument.replace("_", "-")
            option = argument if name in options else None
            found.append(argument)
        elif option is not None and found[-1] != option:
            found += [option, argument]
        else:
            found.append(argument)
    return found


def in_one_line(box: str, prog: str) -> str:
    """What tyro says about the arguments of a command, in a box of several lines, as an error of one line."""
    lines = [line.strip("│") for line in box.splitlines() if line[:1] not in "╭╰"]
    if box[:1] != "╭":  # without a frame, for encodings that have no lines: a title and a line of hyphens
        lines = lines[2:]
    part = [place for place, line in enumerate(lines) if set(line.strip()) in ({"─"}, {"-"})] or [len(lines)]
    said = " ".join(line.strip() for line in lines[: part[0]])
    # arguments are indented by five blanks, and what they do by more
    name = re.compile(r" {5,6}(--?[a-z]\S*|[A-Z]{2,}(?=\s|$))")
    missing, options = (
        [match[1] for line in some if (match := name.match(line))] for some in (lines[: part[0]], lines[part[0] :])
    )
    see = f"see {prog} --help"
    if wrong := re.match(r"Unrecognized options: (.*)", said):
        words = wrong[1].split(", ")
        first = next((word for word in words if word[:1] == "-"), None)
        if first is not None:
            return f"unknown option {first}; " + (f"did you mean {options[0]}? Or " if options else "") + see
        known = [line.partition(": ")[2].strip() for line in lines if "Available subcommands: " in line]
        return f"{words[0]!r} belongs to no option; " + (f"give one of: {known[0]}" if known else see)
    if said.startswith("Missing from"):
        unknown = f"unknown option {options[0]}, and " if options else ""
        return f"{unknown}{', '.join(missing)} must be given; {see}"
    if wrong := re.match(r"Missing value for argument '(\S+)'", said):
        return f"{wrong[1]} needs a value; {see}"
    if wrong := re.match(r"invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*?),?\)", said):
        return f"{wrong[2]} {wrong[1]} is unknown; choose one of: {wrong[3]}".replace("'", "")
    if wrong := re.match(r"Error parsing (\S+?): .*?'(.*?)'", said.replace("'None'", "None")):
        kinds = {"int": "a whole number", "float": "a number"}
        wanted = next((words for kind, words in kinds.items() if re.search(rf"\b{kind}\b", said, re.IGNORECASE)), "")
        if wanted:
            return f"{wrong[1]} {wrong[2]!r} is not {wanted}; {see}"
    return f"{(said or ' '.join(box.split())).rstrip('.')}; {see}"


def exit_code(work: Callable[[], int | None], stopped: str = "stopped", by_option: bool = True) -> int:
    """Do the work of a command, and turn whatever ends it early into one line and an exit code.

    Args:
        work: the command; what it returns is the exit code, None is 0.
        stopped: what is printed where the user interrupts the command.
        by_option: errors name the options of the command, see `named_as_options`.

    Returns:
        What `work` returns; 2 where the user gave something that cannot be used, or a file cannot be written; 130 after
        Ctrl-C; 141 where nobody reads the output any more.
    """
    _quiet_streams()
    try:
        code = work() or 0
        sys.stdout.flush()
        return code
    except VLMError as error:
        return _fail(named_as_options(str(error)) if by_option else str(error))
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # what is still buffered has no reader either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except OSError as error:
        if error.strerror is None and error.errno is None:
            raise
        place = f"{os.fsdecode(error.filename)!r}: " if isinstance(error.filename, str | bytes) else ""
        return _fail(f"{place}{error.strerror}; free some space, check the permissions, or name another place")


def _fail(message: str) -> int:
    """Print an error, and nothing of what is still buffered for an output that cannot take it."""
    print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 2


def _quiet_streams() -> None:
    """Print what the output's encoding cannot hold as escapes, each line at once, and warnings as one line each."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # read when the package is imported
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def named_as_options(text: str) -> str:
    """An error with the options of commands in place of arguments of Python: `beams=0` becomes `--num-beams 0`."""

    def option(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name == "max_pixels":
            name, value = "max_megapixels", value and f"{int(value) / 1e6:g}"
        name = {field: option for option, field in SEARCH_OPTIONS.items()}.get(name, name)
        return f"--{name.replace('_', '-')}" + (f" {value}" if value and value != "True" else "")

    names = "|".join([*SEARCH_OPTIONS.values(), *SAME_NAME, "max_pixels"])
    text = re.sub(rf"(?<![\w'\"/.-])({names})=([^\s,;:)]*)", option, text)
    return re.sub(r"(?<=raise )(max_pixels)()\b", option, text)


def json_line(record: Any) -> str:
    """A record as one line of JSON, in characters that make valid UTF-8 whatever the encoding of the output."""
    text = json.dumps(record, ensure_ascii=False)
    try:
        text.encode()
        wide = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    except UnicodeEncodeError:
        wide = False
    return text if wide else json.dumps(record)


def printable(text: str) -> str:
    """Text in one line: control characters, such as line breaks in the names of files, become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def search_options(args: Any, *names: str) -> dict[str, Any]:
    """Those options of a command, keys of `SEARCH_OPTIONS`, that the user gave, as fields of `GenerationConfig`."""
    given = {SEARCH_OPTIONS[name]: getattr(args, name) for name in names}
    return {field: value for field, value in given.items() if value is not None}


def check_top(top: int) -> None:
    """Refuse `--top` below 1.

    Raises:
        ArgumentError: see above.
    """
    if top < 1:
        raise ArgumentError(f"--top {top} is below 1; give 1 or more")


@contextmanager
def no_collections() -> Iterator[None]:
    """Import and load without garbage collections, and leave what was loaded out of later ones.

    Torch and timm make hundreds of thousands of objects that stay: looking through them again and again, and once more
    at exit, is a third of the time of a first caption (`benchmarks/caption_cli.py`).
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
