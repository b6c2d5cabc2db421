"""Captions and their references as arrays of n-gram counts, from which BLEU and CIDEr are computed.

Both metrics ask the same of a caption and a reference: which n-grams of up to four words do they share, and how often
does each hold them. `NgramTable` answers for a whole set at once: n-grams are numbered by sorting, counted by sorting
again, and matched by binary search, so that no step runs in Python per n-gram.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from vlm.errors import DataError

ORDERS = 4  # longest n-gram
_HYPOTHESES_AT_A_TIME = 4096  # bounds the memory that matching takes


class NgramTable:
    """n-gram counts of a set of hypotheses, each with at least one reference.

    A *caption* below is any different sentence, hypothesis or reference; an *entry* is one of its different n-grams,
    and *own* an entry of a hypothesis; a *pair* is a hypothesis with one of its references; a *match* is an n-gram that
    both of a pair hold.

    Args:
        hypotheses: the words of each hypothesis.
        references: for each hypothesis, the words of its references.

    Attributes:
        words: `int64[captions]`, number of words.
        entry_caption, entry_gram, entry_count, entry_order: `int64[entries]`; order 0 is a single word.
        hypothesis: `int64[hypotheses]`, the caption of each hypothesis.
        pair_hypothesis, pair_reference: `int64[pairs]`, the number of the hypothesis, and the caption of the reference.
        own_hypothesis, own_entry: `int64[owns]`, the number of the hypothesis, and its entry.
        match_pair, match_own, match_entry: `int64[matches]`, the pair, the place in `own_*`, and the entry of the
            reference.

    Raises:
        DataError: the two lists differ in length, there is no hypothesis, or one has no reference.
    """

    def __init__(self, hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]):
        if not hypotheses or len(hypotheses) != len(references):
            raise DataError(
                f"{len(hypotheses)} captions and {len(references)} lists of references; give one list for each"
            )
        if not all(references):
            raise DataError(f"caption {list(map(len, references)).index(0)} has no references; give at least one")
        numbers: dict[tuple[str, ...], int] = {}
        self.hypothesis = _number(numbers, hypotheses)
        self.pair_reference = _number(numbers, (words for image in references for words in image))
        self.pair_hypothesis = np.repeat(np.arange(len(references)), [len(image) for image in references])
        self.words = np.fromiter(map(len, numbers), np.int64, len(numbers))
        self._text = [word for words in numbers for word in words]
        self._count()
        self._match()

    def _count(self) -> None:
        """Number the n-grams of all captions, and count them by caption."""
        vocabulary = {word: number for number, word in enumerate(dict.fromkeys(self._text))}
        word_ids = np.fromiter(map(vocabulary.__getitem__, self._text), np.int64, len(self._text))
        captions = np.repeat(np.arange(len(self.words)), self.words)
        starts = np.arange(len(self._text))
        words_left = np.repeat(np.cumsum(self.words), self.words) - starts  # from here to the caption's end
        grams = np.zeros_like(starts)
        self._gram_start = np.zeros(0, np.int64)  # where the text holds an example of each n-gram
        self._gram_order = np.zeros(0, np.int64)
        occurrences = []
        for order in range(ORDERS):
            fits = words_left[starts] > order
            starts, grams = starts[fits], grams[fits]
            # an n-gram is a shorter one and one word more; sorting these pairs numbers it
            _, first, grams = np.unique(
                grams * len(vocabulary) + word_ids[starts + order], return_index=True, return_inverse=True
            )
            occurrences.append((captions[starts], grams + len(self._gram_start)))
            self._gram_start = np.concatenate([self._gram_start, starts[first]])
            self._gram_order = np.concatenate([self._gram_order, np.full(len(first), order)])
        self._gram_bits = len(self._gram_start).bit_length()
        keys = np.concatenate([self._key(caption, gram) for caption, gram in occurrences])
        keys, self.entry_count = np.unique(keys, return_counts=True)
        self.entry_caption = keys >> self._gram_bits
        self.entry_gram = self._gram_of(keys)
        self.entry_order = self._gram_order[self.entry_gram]
        self._first_entry = np.searchsorted(self.entry_caption, np.arange(len(self.words) + 1))

    def _match(self) -> None:
        """Find the n-grams that each hypothesis shares with each of its references."""
        self.own_entry, self.own_hypothesis = self._entries(self.hypothesis)
        own_keys = self._key(self.own_hypothesis, self.entry_gram[self.own_entry])  # ascending
        own_keys = np.append(own_keys, -1)  # for keys beyond the last; equals none
        found = []
        for keys, pairs, entries in self._reference_entries():
            place = np.searchsorted(own_keys[:-1], keys)
            hit = own_keys[place] == keys
            found.append((pairs[hit], place[hit], entries[hit]))
        self.match_pair, self.match_own, self.match_entry = (np.concatenate(part) for part in zip(*found, strict=True))

    def document_frequency(self) -> np.ndarray:
        """For each n-gram, the number of hypotheses that have it in at least one reference: `int64[grams]`."""
        held = []
        for keys, _, _ in self._reference_entries():
            keys.sort()  # then an n-gram of several references of one hypothesis stands several times in a row
            held.append(self._gram_of(keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]))
        return np.bincount(np.concatenate(held), minlength=len(self._gram_start))

    def grams(self) -> Iterator[tuple[str, ...]]:
        """The n-grams themselves, in the order of their numbers."""
        for start, order in zip(self._gram_start.tolist(), self._gram_order.tolist(), strict=True):
            yield tuple(self._text[start : start + order + 1])

    def sum_by_order(self, owners: np.ndarray, entries: np.ndarray, values: np.ndarray, num_owners: int) -> np.ndarray:
        """Add `values` of entries by whom they belong to and by order: `float64[owners, ORDERS]`."""
        cells = owners * ORDERS + self.entry_order[entries]
        sums = np.bincount(cells, values, minlength=num_owners * ORDERS)
        return sums.reshape(num_owners, ORDERS).astype(np.float64)  # without cells, bincount counts in integers

    def _reference_entries(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """All entries of all references, some hypotheses at a time: key of hypothesis and n-gram, pair, entry."""
        for start in range(0, len(self.hypothesis), _HYPOTHESES_AT_A_TIME):
            first, last = np.searchsorted(self.pair_hypothesis, [start, start + _HYPOTHESES_AT_A_TIME])
            entries, pairs = self._entries(self.pair_reference[first:last])
            pairs += first
            yield self._key(self.pair_hypothesis[pairs], self.entry_gram[entries]), pairs, entries

    def _entries(self, captions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The entries of some captions, one caption after another, and for each entry its place in `captions`."""
        first = self._first_entry[captions]
        counts = self._first_entry[captions + 1] - first
        place = np.repeat(np.arange(len(captions)), counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        return first[place] + within, place

    def _key(self, owner: np.ndarray, gram: np.ndarray) -> np.ndarray:
        return owner << self._gram_bits | gram

    def _gram_of(self, keys: np.ndarray) -> np.ndarray:
        return keys & (1 << self._gram_bits) - 1


def _number(numbers: dict[tuple[str, ...], int], captions: Iterable[Sequence[str]]) -> np.ndarray:
    """The number of each caption; a new one gets the next."""
    return np.array([numbers.setdefault(tuple(words), len(numbers)) for words in captions], dtype=np.int64)
