"""The words that the rules know: `words.txt`, read once."""

from dataclasses import dataclass, field
from functools import cache
from importlib import resources

NOUN_SECTIONS = ("person", "animal", "vehicle", "clothing", "thing", "food", "place")
LONGEST_NAME = 3  # words


@dataclass(frozen=True)
class Noun:
    """One form of a noun.

    Attributes:
        concept: name of what it means, the same for synonyms.
        section: person, animal, vehicle, clothing, thing, food or place.
        word: the singular, as it is spelled here.
        plural: this form names several.
        single: this form may name one.
    """

    concept: str
    section: str
    word: str
    plural: bool
    single: bool

    @property
    def animate(self) -> bool:
        return self.section in ("person", "animal")


@dataclass
class Lexicon:
    """What `words.txt` says.

    Attributes:
        nouns: each form, singular and plural, with blanks inside names.
        wider: concept to the concepts above it, all the way up.
        plurals: singular to plural.
        colours: colour words to the names that answers use.
        verbs: every form of a verb to its "-ing" form.
        numbers: number words to their values.
        adjectives: words that may stand between a colour and its noun.
        sets: words that single rules use, by name.
    """

    nouns: dict[str, Noun] = field(default_factory=dict)
    wider: dict[str, set[str]] = field(default_factory=dict)
    plurals: dict[str, str] = field(default_factory=dict)
    sections: dict[str, str] = field(default_factory=dict)
    colours: dict[str, str] = field(default_factory=dict)
    shades: set[str] = field(default_factory=set)
    verbs: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    adjectives: set[str] = field(default_factory=set)
    sets: dict[str, set[str]] = field(default_factory=dict)

    def related(self, a: str, b: str) -> bool:
        """One concept is the other or wider than the other."""
        return a == b or a in self.wider.get(b, ()) or b in self.wider.get(a, ())

    def add_noun(self, section: str, line: str) -> None:
        names, _, above = line.partition("<")
        concept = names.split()[0].split("/")[0].replace("_", " ")
        self.sections[concept] = section
        self.wider.setdefault(concept, set()).update(name.replace("_", " ") for name in above.split())
        for name in names.split():
            single, _, plural = name.replace("_", " ").partition("/")
            plural = plural or _add_s(single)
            # "clothes" and "hair" have no second form: those that end in s are plural ("what color are the pants?")
            same = plural == single
            self.nouns.setdefault(single, Noun(concept, section, single, same and single.endswith("s"), True))
            self.nouns.setdefault(plural, Noun(concept, section, single, True, False))
            self.plurals[single] = plural

    def close(self) -> None:
        """Make `wider` hold every step up."""
        for concept in list(self.wider):
            todo = list(self.wider[concept])
            while todo:
                for name in self.wider.get(todo.pop(), ()):
                    if name not in self.wider[concept]:
                        self.wider[concept].add(name)
                        todo.append(name)


def _add_s(word: str) -> str:
    if word.endswith(("ch", "sh", "s", "x")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in "aeiou" else word + "s"


@cache
def lexicon() -> Lexicon:
    """`words.txt`, read at the first call."""
    found = Lexicon()
    section = ""
    text = (resources.files("vlm.data.questions") / "words.txt").read_text(encoding="utf-8")
    for line in (line.strip() for line in text.splitlines()):
        if not line or line.startswith("#"):
            continue
        words = line.split()
        if line.startswith("["):
            section = line.strip("[]")
        elif section in NOUN_SECTIONS:
            found.add_noun(section, line)
        elif section == "colour":
            found.colours.update({word: word for word in words})
        elif section == "colour_as":
            found.colours[words[0]] = words[1]
        elif section == "number":
            found.numbers.update(zip(words[::2], map(int, words[1::2]), strict=True))
        elif section == "verb":
            base, ing = words
            found.verbs.update({base: ing, _add_s(base): ing, ing: ing})
        elif section.startswith("set "):
            found.sets.setdefault(section[4:], set()).update(word.replace("_", " ") for word in words)
        else:
            {"shade": found.shades, "adjective": found.adjectives}[section].update(words)
    found.verbs["does"] = found.verbs["goes"] = "doing"
    found.close()
    return found


def word_set(name: str) -> set[str]:
    """A set of words from `words.txt`."""
    return lexicon().sets[name]
