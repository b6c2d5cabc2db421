"""Byte-level BPE with image-code and location tokens after the pieces of text.

The id layout is OFA's: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, the pieces of text, `<mask>`, then `<code_0>` and on,
`<bin_0>` and on. Text can never produce a special token: letters and signs are cut apart before pieces are merged, so
that `"<s>"` or `"<bin_3>"` in a caption is ordinary text.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from vlm.errors import ArgumentError, ModelError, check_list
from vlm.files.atomic import write_text

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # BOS, PAD, EOS, UNK


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back.

    Attributes:
        bpe: the byte-level BPE, which emits final ids (of OFA's Chinese models, BERT's WordPiece).
        num_text: pieces of text, with ids from 4 to `num_text + 3`.
        num_codes: image-code tokens.
        num_bins: location tokens; a coordinate in [0, 1] is one of that many steps.
    """

    bpe: tokenizers.Tokenizer
    num_text: int
    num_codes: int = 0
    num_bins: int = 0

    @property
    def mask_id(self) -> int:
        return len(SPECIALS) + self.num_text

    @property
    def code_start(self) -> int:
        return self.mask_id + 1

    @property
    def bin_start(self) -> int:
        return self.code_start + self.num_codes

    @property
    def vocab_size(self) -> int:
        return self.bin_start + self.num_bins

    @property
    def text_range(self) -> tuple[int, int]:
        """First id of text and the one after the last: what a sentence is made of."""
        return len(SPECIALS), self.mask_id

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces of `text`, with no start or end token."""
        return self.bpe.encode(check_unicode(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text."""
        check_list("texts", texts)
        checked = [check_unicode(text) for text in texts]
        return [encoding.ids for encoding in self.bpe.encode_batch_fast(checked, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids that are pieces of text; all others are left out."""
        return self.bpe.decode([i for i in ids if len(SPECIALS) <= i < self.mask_id], skip_special_tokens=False)

    def locations(self, values: Iterable[float]) -> list[int]:
        """Location ids of coordinates in [0, 1]: `round(value * (num_bins - 1))`, clipped to the ends."""
        last = self.num_bins - 1
        return [self.bin_start + min(max(round(value * last), 0), last) for value in values]

    def coordinates(self, ids: Iterable[int]) -> list[float]:
        """Coordinates in [0, 1] of the location ids among `ids`."""
        last = self.num_bins - 1
        return [(i - self.bin_start) / last for i in ids if self.bin_start <= i < self.vocab_size]

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json` (the format of the `tokenizers` library); the layout is kept in the model's config."""
        write_text(path, self.bpe.to_str(pretty=False) + "\n")

    @classmethod
    def load(cls, path: str | Path, num_codes: int = 0, num_bins: int = 0) -> "Tokenizer":
        """Read a `tokenizer.json`.

        Raises:
            ModelError: the file is missing or no tokenizer.
        """
        try:
            bpe = tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(f"no tokenizer at {str(path)!r}; a model's folder needs its tokenizer.json") from None
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{str(path)!r} is not a tokenizer.json: {error}") from None
        return cls(bpe, bpe.get_vocab_size() - len(SPECIALS), num_codes, num_bins)


def check_unicode(text: str) -> str:
    """The text itself.

    Raises:
        ArgumentError: it is not text, or holds half of a surrogate pair, as where a command line or a file name is in
            another encoding than UTF-8.
    """
    if not isinstance(text, str):
        raise ArgumentError(f"{str(text)[:40]!r} is {type(text).__name__} where text belongs; give a string")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"the text {text[:40]!r} is not Unicode; write it in UTF-8") from None
    return text


def train_tokenizer(texts: Iterable[str], num_text: int, num_codes: int = 0, num_bins: int = 0) -> Tokenizer:
    """Learn a byte-level BPE of `num_text` pieces, the 256 bytes among them.

    Args:
        texts: sentences; a leading blank belongs to the text, as in OFA's prompts and answers.
        num_text: pieces of text to learn.
        num_codes: image-code tokens to reserve.
        num_bins: location tokens to reserve.
    """
    check_list("texts", texts)
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_text, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    # the specials take the first ids and stay out of the merges' reach: they are no "added tokens" of the library
    data = json.loads(bpe.to_str())
    pieces = sorted(data["model"]["vocab"], key=data["model"]["vocab"].__getitem__)
    data["model"]["vocab"] = {token: i for i, token in enumerate([*SPECIALS, *pieces])}
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(data)), len(pieces), num_codes, num_bins)
