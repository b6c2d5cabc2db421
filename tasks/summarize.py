"""Summarise texts in a sentence each."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tasks._command import command, json_line, no_collections, search_options
from vlm.errors import ArgumentError, DataError, VLMError


@dataclass(frozen=True)
class Args:
    text: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Text to summarise. Text after the first 512 words is ignored."""
    file: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Text file (UTF-8) to summarise; - reads standard input."""
    model: str = "tiny"
    """Bundled name, local folder or hub id; ofa:FILE, ofa:FOLDER or ofa:OWNER/NAME for an OFA checkpoint."""
    tokenizer: str | None = None
    """Folder or hub id of an OFA checkpoint's vocabulary, if it is not in the same folder as the checkpoint."""
    num_beams: int | None = None
    """Beam width; 1 is greedy search. By default the model's own setting (6)."""
    max_length: int | None = None
    """Longest summary, in tokens. By default the model's own setting (32)."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""
    json: bool = False
    """Print one JSON object per line: file (null for --text), summary, score."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("summarize", Args, run, __doc__, argv)


def run(args: Args) -> int:
    """Print the summaries of files and texts, in this order; 1 where one could not be summarised."""
    if not args.text and not args.file:
        raise ArgumentError("there is nothing to summarise; give --text or --file")
    options = search_options(args, "num_beams", "max_length")
    with no_collections():
        import vlm

        model = vlm.load(args.model, device=args.device, tokenizer=args.tokenizer)
    model.task("summarize")
    failed = False
    for file, text in [*((file, None) for file in args.file), *((None, text) for text in args.text)]:
        try:
            given = read(file) if text is None and file is not None else text or ""
            (found,) = model.run("summarize", None, [given], **options)
        except VLMError as error:
            print(f"error: {f'{file!r}: ' if file and file not in str(error) else ''}{error}", file=sys.stderr)
            failed = True
            continue
        if args.json:
            record = {"file": file, "summary": found[0].text, "score": found[0].score}
            print(json_line(record))
        else:
            print(f"{file}: {found[0].text}" if file and len(args.file) + len(args.text) > 1 else found[0].text)
    return int(failed)


def read(file: str) -> str:
    """The text of a file, or of standard input.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return sys.stdin.read() if file == "-" else Path(os.path.expanduser(file)).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"{file!r} cannot be read: {reason}; give a text file") from None


if __name__ == "__main__":
    sys.exit(main())
