"""ROUGE-L with the figures of pycocoevalcap's `Rouge`.

ROUGE-L (Lin 2004) is the F-measure of the longest common subsequence of words. The official script takes the best
precision and the best recall over the references, even where they come from different ones, and weighs recall by
beta = 1.2. A caption without words counts there as one empty word, so that it agrees perfectly with an empty reference;
that is kept.
"""

from collections.abc import Sequence

_BETA_SQUARED = 1.2**2


def rouge_l(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """F-measure of one caption's words against those of its references; the figure of a set is the mean."""
    words = words or [""]
    places: dict[str, int] = {}
    for place, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << place
    precision = recall = 0.0
    for reference in references:
        common = _longest_common_subsequence(places, len(words), reference or [""])
        precision = max(precision, common / len(words))
        recall = max(recall, common / max(1, len(reference)))
    if not precision:
        return 0.0
    return (1 + _BETA_SQUARED) * precision * recall / (recall + _BETA_SQUARED * precision)


def _longest_common_subsequence(places: dict[str, int], length: int, words: Sequence[str]) -> int:
    """Length of the longest common subsequence, all places of one sentence at a time (Hyyrö 2004).

    Args:
        places: for each word of one sentence, a bit set of the places where it stands.
        length: that sentence's number of words.
        words: the other sentence.
    """
    row = everywhere = (1 << length) - 1  # a zero bit: here the row of the usual table goes up by one
    for word in words:
        if word in places:
            here = row & places[word]
            row = ((row + here) | (row - here)) & everywhere
    return length - row.bit_count()
