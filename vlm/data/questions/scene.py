"""What the captions of one photo say together."""

from collections.abc import Iterator, Sequence
from functools import cached_property

from vlm.data.questions.lexicon import lexicon, word_set
from vlm.data.questions.phrases import Parsed, Phrase, parse

AGES = ("man", "woman", "boy", "girl", "child", "baby")
OPPOSITE = {"man": ("woman", "girl"), "woman": ("man", "boy"), "boy": ("girl", "woman"), "girl": ("boy", "man")}
CROWDS = word_set("crowds")


class Scene:
    """The captions of a photo, parsed.

    Attributes:
        captions: each parsed.
        words: every token of every caption.
    """

    def __init__(self, captions: Sequence[str]):
        self.captions: list[Parsed] = [parse(caption) for caption in captions if caption.strip()]
        self.words = {token for caption in self.captions for token in caption.tokens}
        text = " ".join(" ".join(caption.tokens) for caption in self.captions)
        self.grey = any(
            f"{mark} {kind}" in text
            for mark in ("black and white", "black - and - white", "black-and-white", "sepia")
            for kind in ("photo", "picture", "image", "shot", "photograph", "film", "scene", "snapshot", "view")
        )

    @cached_property
    def phrases(self) -> list[tuple[int, Phrase]]:
        """Every noun phrase with the number of its caption."""
        return [(n, phrase) for n, caption in enumerate(self.captions) for phrase in caption.phrases]

    @cached_property
    def concepts(self) -> dict[str, int]:
        """Concept to how many captions mention it."""
        found: dict[str, int] = {}
        for caption in self.captions:
            for concept in dict.fromkeys(phrase.concept for phrase in caption.phrases):
                found[concept] = found.get(concept, 0) + 1
        return found

    def mentions(self, concept: str) -> list[Phrase]:
        """Phrases about a concept or something narrower."""
        wider = lexicon().wider
        return [p for _, p in self.phrases if p.concept == concept or concept in wider.get(p.concept, ())]

    def per_caption(self, concept: str) -> Iterator[list[Phrase]]:
        wider = lexicon().wider
        for caption in self.captions:
            yield [p for p in caption.phrases if p.concept == concept or concept in wider.get(p.concept, ())]

    def unique(self, concept: str) -> bool:
        """The captions speak of exactly one thing of this kind."""
        words = lexicon()
        mentions = self.mentions(concept)
        if not mentions or not all(phrase.one or _always_plural(phrase) for phrase in mentions):
            return False
        if any(len(found) > 1 for found in self.per_caption(concept)):
            return False
        above = [p for _, p in self.phrases if p.concept in words.wider.get(concept, ()) and not p.one]
        if above and not self._with_other(concept):
            return False
        section = words.sections[concept]
        return section not in ("person", "animal") or not self.disputed(concept)

    def _with_other(self, concept: str) -> bool:
        """A caption names this one beside another person or animal, so that "two people" may hold both."""
        words = lexicon()
        for caption in self.captions:
            found = [p for p in caption.phrases if p.noun.section == words.sections[concept]]
            if any(p.concept == concept for p in found) and any(
                p.concept in AGES and not words.related(p.concept, concept) and p.one for p in found
            ):
                return True
        return False

    def disputed(self, concept: str) -> bool:
        """Other captions call it something else: a woman, or a cat."""
        words = lexicon()
        own = self.concepts.get(concept, 0)
        for other, count in self.concepts.items():
            if words.sections[other] != words.sections[concept] or words.related(other, concept):
                continue
            if words.sections[concept] == "person" and (concept not in AGES or other not in AGES):
                continue
            together = any(
                {concept, other} <= {phrase.concept for phrase in caption.phrases} for caption in self.captions
            )
            if not together and (count > 1 or own < 3):
                return True
        return False

    def only_person(self) -> bool:
        """Every caption that names people names one."""
        return all(len(found) <= 1 and all(p.one for p in found) for found in self.per_caption("person")) and not (
            self.words & CROWDS
        )


def _always_plural(phrase: Phrase) -> bool:
    return phrase.noun.plural and phrase.noun.single and not phrase.vague and phrase.number is None
