"""OFA's vocabularies as our `Tokenizer`.

The ids are `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, the lines of the publisher's `dict.txt` in the order of the file,
`<mask>`, 8192 image codes and 1000 locations. Of the English models a line of `dict.txt` is the decimal number of a
piece of GPT-2's byte-level BPE (`encoder.json` names the pieces, `vocab.bpe` has the merges), or a filler; the same
vocabulary in the layout of transformers is `vocab.json`, which has the final ids, and `merges.txt`. Of the Chinese
models a line is a WordPiece of BERT.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from vlm.errors import ModelError
from vlm.files import hub
from vlm.tokenizer import SPECIALS, Tokenizer

NUM_CODES, NUM_BINS = 8192, 1000
# what may lie in a folder, for downloads
FILES = ("dict.txt", "encoder.json", "vocab.bpe", "vocab.json", "merges.txt", "vocab.txt")
_WHERE = (
    "give tokenizer= a folder with dict.txt, encoder.json and vocab.bpe (utils/BPE of the repository OFA-Sys/OFA on "
    "GitHub; utils/BERT_CN_dict for Chinese models), one with vocab.json and merges.txt, or a hub id: OFA-Sys/ofa-base"
)


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Read a vocabulary from a folder, or from a repository of the Hugging Face hub.

    Args:
        source: a folder in one of the layouts above (of the Chinese, `vocab.txt` is enough), or a hub id.

    Raises:
        ModelError: there is no such folder or repository, or its files are missing or damaged.
    """
    folder = Path(os.path.expanduser(source))
    if not folder.is_dir():
        if not hub.is_hub_id(str(source)):
            raise ModelError(f"no folder {str(source)!r}; {_WHERE}")
        folder = hub.fetch(str(source), FILES)
    merges = next((folder / name for name in ("vocab.bpe", "merges.txt") if (folder / name).is_file()), None)
    if (folder / "encoder.json").is_file() and (folder / "dict.txt").is_file() and merges:
        return _byte_level(_numbered_pieces(folder / "dict.txt", folder / "encoder.json"), merges)
    if (folder / "vocab.json").is_file() and merges:
        return _byte_level(_named_pieces(folder / "vocab.json"), merges)
    words = next((folder / name for name in ("dict.txt", "vocab.txt") if (folder / name).is_file()), None)
    if words and not (folder / "encoder.json").is_file():
        # a dict.txt without its encoder.json may as well be half of the English layout
        symbols = list(_symbols(words))
        if "[UNK]" in symbols:
            return _word_piece(symbols)
    raise ModelError(f"no OFA vocabulary in {str(folder)!r}; {_WHERE}")


def read_dictionary(file: Path) -> dict[str, int]:
    """Ids of all symbols of a model by their names in `dict.txt`, with specials, codes and locations.

    Raises:
        ModelError: the file is damaged.
    """
    codes, bins = (f"<code_{i}>" for i in range(NUM_CODES)), (f"<bin_{i}>" for i in range(NUM_BINS))
    return {symbol: i for i, symbol in enumerate([*SPECIALS, *_symbols(file), "<mask>", *codes, *bins])}


def is_chinese(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is that of OFA's Chinese models."""
    return isinstance(tokenizer.bpe.model, models.WordPiece)


def _symbols(file: Path) -> Iterator[str]:
    """The symbols of `dict.txt` (`symbol count` a line) or of BERT's `vocab.txt` (`symbol` a line)."""
    seen: set[str] = set()
    for number, line in enumerate(_lines(file), 1):
        symbol, blank, count = line.rpartition(" ") if file.name == "dict.txt" else (line, " ", "0")
        if not symbol or not blank or not count.isdecimal() or symbol in seen:
            raise ModelError(f"{str(file)!r}, line {number}: {line[:40]!r} is not a new symbol; copy the file again")
        seen.add(symbol)
        yield symbol


def _numbered_pieces(dictionary: Path, encoder: Path) -> dict[str, int]:
    names = {str(number): piece for piece, number in _read_json(encoder).items()}
    pieces: list[str] = list(SPECIALS)
    for number, symbol in enumerate(_symbols(dictionary), 1):
        if symbol.isdecimal() and symbol not in names:
            raise ModelError(f"{str(dictionary)!r}, line {number}: {str(encoder)!r} has no piece {symbol}; copy both")
        pieces.append(names.get(symbol, symbol))
    return {piece: i for i, piece in enumerate(pieces)}


def _named_pieces(file: Path) -> dict[str, int]:
    pieces = _read_json(file)
    end = pieces.get("<mask>")  # some files go on with the codes and locations
    pieces = {piece: i for piece, i in pieces.items() if end is None or i < end}
    if sorted(pieces.values()) != list(range(len(pieces))) or any(pieces.get(s) != i for i, s in enumerate(SPECIALS)):
        raise ModelError(f"{str(file)!r} is not OFA's: its ids must count up from <s> 0, <pad> 1, </s> 2 and <unk> 3")
    return pieces


def _byte_level(pieces: dict[str, int], merges_file: Path) -> Tokenizer:
    lines = [line for line in _lines(merges_file) if line and not line.startswith("#version")]
    try:
        merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
        bpe = tokenizers.Tokenizer(models.BPE(vocab=pieces, merges=merges))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{str(merges_file)!r} does not fit the vocabulary beside it: {error}; copy both") from None
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return Tokenizer(bpe, len(pieces) - len(SPECIALS), NUM_CODES, NUM_BINS)


def _word_piece(symbols: list[str]) -> Tokenizer:
    pieces = {piece: i for i, piece in enumerate([*SPECIALS, *symbols])}
    bpe = tokenizers.Tokenizer(models.WordPiece(pieces, unk_token="[UNK]", max_input_chars_per_word=100))
    bpe.normalizer = normalizers.BertNormalizer(lowercase=True)
    bpe.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # Chinese has no blanks between words: only those in front of other scripts are kept
    bpe.decoder = decoders.Sequence([decoders.WordPiece(), decoders.Replace(Regex(r"^ (?=[\p{Han}，。？！、])"), "")])
    return Tokenizer(bpe, len(symbols), NUM_CODES, NUM_BINS)


def _lines(file: Path) -> list[str]:
    # str.splitlines would also split at signs that are symbols of the Chinese vocabulary
    return _read(file).removesuffix("\n").split("\n")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"{str(file)!r} cannot be read: {error}; copy or download it again") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read(file))
    except ValueError as error:
        raise ModelError(f"{str(file)!r} is not JSON: {error}; copy or download it again") from None
    if not isinstance(values, dict) or not all(isinstance(i, int) for i in values.values()):
        raise ModelError(f"{str(file)!r} does not map pieces to numbers; copy or download it again")
    return values
