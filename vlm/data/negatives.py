"""Sentences that nearly fit a photo: a true sentence with one thing changed, and those of alike photos."""

import math
import random
import re
from collections import Counter
from collections.abc import Sequence

import torch

# words of one row may stand for each other in a sentence, and mean something else
GROUPS = tuple(
    tuple(row.split())
    for row in (
        "red blue green yellow orange purple pink brown black white gray",
        "one two three four five six",
        "man woman boy girl baby",
        "men women boys girls babies",
        "dog cat horse bird cow elephant bear zebra giraffe",
        "dogs cats horses birds cows sheep elephants bears zebras giraffes",
        "car bus truck train bicycle motorcycle boat airplane skateboard",
        "beach street field forest kitchen bathroom bedroom park mountain river",
        "grass sand snow water dirt",
        "ball frisbee stick bone toy kite bat racket book phone umbrella camera guitar",
        "shirt jacket dress hat helmet sweater coat",
        "table chair bench couch bed desk",
        "pizza sandwich cake banana apple salad",
        "running sitting standing sleeping swimming jumping walking climbing eating riding",
        "runs sits stands sleeps swims jumps walks climbs",
        "large small",
        "big little",
        "young old",
        "left right",
        "above below",
        "inside outside",
        "indoors outdoors",
        "wet dry",
        "open closed",
        "day night",
    )
)
PHRASES = (("in front of", "behind"), ("on top of", "under"), ("looking at", "facing away from"))
NOUN_ROWS = range(2, 13)  # of `GROUPS`

_ROW = {word: number for number, row in enumerate(GROUPS) for word in row}
_WORD = re.compile(r"[a-z]+")


def changed_sentences(sentence: str, known: Sequence[str], rng: random.Random) -> list[str]:
    """Sentences that differ from a true one in one thing.

    Args:
        sentence: a true sentence, in lower case.
        known: all true sentences; a word that one of them holds is never put in.
        rng: the only source of randomness.

    Returns:
        One for each word, relation or pair of nouns that can be changed, in random order.
    """
    seen = set(_WORD.findall(" ".join(known).lower())) | set(_WORD.findall(sentence))
    found: list[str] = []
    places = [match for match in _WORD.finditer(sentence) if match.group() in _ROW]
    for match in places:
        others = [word for word in GROUPS[_ROW[match.group()]] if word not in seen]
        if others:
            found.append(sentence[: match.start()] + rng.choice(others) + sentence[match.end() :])
    for one, other in PHRASES:
        for old, new in ((one, other), (other, one)):
            if f" {old} " in sentence:
                found.append(sentence.replace(f" {old} ", f" {new} ", 1))
    nouns = [match for match in places if _ROW[match.group()] in NOUN_ROWS]
    pairs = [(a, b) for i, a in enumerate(nouns) for b in nouns[i + 1 :] if a.group() != b.group()]
    if pairs:
        a, b = rng.choice(pairs)
        middle = sentence[a.end() : b.start()]
        if not {"and", *middle.split()} <= {"and", "a", "an", "the"}:  # "a man and a dog" says the same as its reverse
            found.append(sentence[: a.start()] + b.group() + middle + a.group() + sentence[b.end() :])
    rng.shuffle(found)
    return found


def alike(captions: Sequence[Sequence[str]], count: int, block: int = 512) -> list[list[int]]:
    """For each photo the photos whose captions have the most words in common, rare words first (cosine of tf-idf).

    Args:
        captions: of each photo.
        count: how many photos to find, at most.
        block: photos that are compared at once.

    Returns:
        Numbers of photos, the most alike first; none where a photo has no captions.
    """
    words = [Counter(_WORD.findall(" ".join(texts).lower())) for texts in captions]
    photos_with = Counter(word for counts in words for word in counts)
    # a word of one photo alone has nothing to compare
    number = {word: i for i, word in enumerate(sorted(word for word, n in photos_with.items() if n > 1))}
    vectors = torch.zeros(len(words), len(number))
    for row, counts in enumerate(words):
        for word, times in counts.items():
            if word in number:
                vectors[row, number[word]] = (1 + math.log(times)) * math.log(len(words) / photos_with[word])
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    sparse = vectors.to_sparse()  # a photo's captions hold some forty of many thousand words
    found: list[list[int]] = []
    for first in range(0, len(words), block):
        cosines = (sparse @ vectors[first : first + block].T).T
        rows = torch.arange(len(cosines))
        cosines[rows, first + rows] = -1
        values, places = cosines.topk(min(count, len(words)), dim=1)
        found += [
            [place for place, value in zip(photo, cosine, strict=True) if value > 0]
            for photo, cosine in zip(places.tolist(), values.tolist(), strict=True)
        ]
    return found
