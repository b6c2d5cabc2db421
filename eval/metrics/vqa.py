"""VQA accuracy, with the figures of the official script.

The rules are those of VQAEval in the repository GT-Vision-Lab/VQA (`PythonEvaluationTools/vqaEvaluation/vqaEval.py`,
head of master), read as Python 3 runs them; metric: Antol et al., "VQA: Visual Question Answering", 2015. An answer
that at least three people gave counts fully. The score is the mean over the sets that leave one person out, each giving
`min(1, matches among the others / 3)`.

What the official script does that nobody would guess, and what is therefore done here:

* Agreement switches normalisation off. If all human answers of a question are one string, nothing is normalised,
  neither they nor the prediction: `Yes` then scores 0 against ten times `yes`.
* A mark is deleted everywhere if it stands beside a blank anywhere in the answer, and becomes a blank otherwise:
  `a-b -c` is `ab c`, but `a-b` is `b` (the article goes). One comma between two digits anywhere, as in `1,000 (a/b)`,
  deletes all marks.
* Apostrophes, colons and other signs stay: they are not on the list of marks.
* A dot is deleted unless a digit follows it. The pattern was meant to spare a dot after a digit too, but that part of
  it is misspelt. The flag `re.UNICODE` is passed where `re.sub` expects a count, so that only the first 32 dots go.
* `none` is `0`; the words zero to ten are digits, later ones are not. `a`, `an` and `the` vanish, also when they are
  the whole answer: any two of them match.
* Contractions get their apostrophe, but `somebody'd` loses its own. Those of `I` are listed with a capital, while words
  are lower case by then: `im` stays `im`.
* Means are rounded to two decimals of a percentage (`VQAScores.official`); all else here is a fraction, unrounded.

Older copies of the script, still found in many packages, always normalise the prediction, and of the human answers only
the punctuation. Their figures differ from these.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vlm.errors import DataError

_MARKS = r"""[;/\[\]"{}()=+\\_\-><@`,?!]"""
_MARK = re.compile(_MARKS)
_MARK_BESIDE_BLANK = re.compile(rf"(?<= ){_MARKS}|{_MARKS}(?= )")
_DIGIT_GROUP = re.compile(r"\d,\d")
_DOT = re.compile(r"\.(?!\d)")
_MAX_DOTS = int(re.UNICODE)  # 32: the official script's count of dots to delete

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
}

# The official table, without entries that change nothing (let's, she's) and those with a capital, which never match.
_CONTRACTION_PAIRS = """
    aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've
    couldnt've:couldn't've didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've hadn'tve:hadn't've
    hasnt:hasn't havent:haven't hed:he'd hed've:he'd've he'dve:he'd've hes:he's howd:how'd howll:how'll hows:how's
    isnt:isn't itd:it'd itd've:it'd've it'dve:it'd've itll:it'll maam:ma'am mightnt:mightn't mightnt've:mightn't've
    mightn'tve:mightn't've mightve:might've mustnt:mustn't mustve:must've neednt:needn't notve:not've oclock:o'clock
    oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at shant:shan't shed've:she'd've
    she'dve:she'd've shouldve:should've shouldnt:shouldn't shouldnt've:shouldn't've shouldn'tve:shouldn't've
    somebody'd:somebodyd somebodyd've:somebody'd've somebody'dve:somebody'd've somebodyll:somebody'll
    somebodys:somebody's someoned:someone'd someoned've:someone'd've someone'dve:someone'd've someonell:someone'll
    someones:someone's somethingd:something'd somethingd've:something'd've something'dve:something'd've
    somethingll:something'll thats:that's thered:there'd thered've:there'd've there'dve:there'd've therere:there're
    theres:there's theyd:they'd theyd've:they'd've they'dve:they'd've theyll:they'll theyre:they're theyve:they've
    twas:'twas wasnt:wasn't wed've:we'd've we'dve:we'd've weve:we've werent:weren't whatll:what'll whatre:what're
    whats:what's whatve:what've whens:when's whered:where'd wheres:where's whereve:where've whod:who'd
    whod've:who'd've who'dve:who'd've wholl:who'll whos:who's whove:who've whyll:why'll whyre:why're whys:why's
    wont:won't wouldve:would've wouldnt:wouldn't wouldnt've:wouldn't've wouldn'tve:wouldn't've yall:y'all
    yall'll:y'all'll y'allll:y'all'll yall'd've:y'all'd've y'alld've:y'all'd've y'all'dve:y'all'd've youd:you'd
    youd've:you'd've you'dve:you'd've youll:you'll youre:you're youve:you've
"""
CONTRACTIONS = {short: full for short, _, full in (pair.partition(":") for pair in _CONTRACTION_PAIRS.split())}

_WORDS = CONTRACTIONS | _NUMBERS  # the two share no word, and neither makes an article: one look-up does for both


@lru_cache(maxsize=1 << 18)  # answers repeat: most of two million human answers are among a few thousand
def normalize_answer(text: str) -> str:
    """Bring an answer to the form in which the official script compares answers, as described above.

    Doing it twice changes nothing more, unless over 32 dots were to go.
    """
    text = _clean(text)
    if _MARK.search(text):
        text = _strip_marks(text)
    if "." in text:
        text = _DOT.sub("", text, count=_MAX_DOTS)
    return " ".join([_WORDS.get(word, word) for word in text.lower().split() if word not in _ARTICLES])


def _clean(text: str) -> str:
    """Line ends and tabs become blanks, outer blanks go: all that is done where people agree."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def _strip_marks(text: str) -> str:
    if _DIGIT_GROUP.search(text):
        return _MARK.sub("", text)
    beside_blank = set(_MARK_BESIDE_BLANK.findall(text))
    return _MARK.sub(lambda mark: "" if mark[0] in beside_blank else " ", text)


def vqa_accuracy(prediction: str, humans: Sequence[str]) -> float:
    """Score of one answer against those that people gave to the question, usually ten, in any order.

    One person alone leaves nobody to compare with, so that the score is 0, as in the official loop.

    Returns:
        A fraction, 0 to 1.

    Raises:
        DataError: there is no human answer.
    """
    if not humans:
        raise DataError("vqa_accuracy: no human answers; give at least one")
    prediction, humans = _clean(prediction), [_clean(human) for human in humans]
    if len(set(humans)) > 1:
        prediction, humans = normalize_answer(prediction), [normalize_answer(human) for human in humans]
    hits = [human == prediction for human in humans]
    matches = sum(hits)
    # a person who gave this answer is left out of the count in their own turn
    turns = min(1, matches / 3), min(1, (matches - 1) / 3)
    return sum([turns[hit] for hit in hits]) / len(hits)  # summed in the official order, so that every bit agrees


@dataclass(frozen=True)
class VQAScores:
    """Scores of a set of questions, as fractions; questions stand in the order of the annotations."""

    question_ids: list[int | str]
    per_question: NDArray[np.float64]  # [questions]
    answer_types: list[str]  # of each question: yes/no, number or other
    question_types: list[str]  # of each question: its first words, as the publisher grouped them

    @property
    def overall(self) -> float:
        return _mean(self.per_question.tolist())

    @property
    def per_answer_type(self) -> dict[str, float]:
        return {name: _mean(scores) for name, scores in self._grouped(self.answer_types).items()}

    @property
    def per_question_type(self) -> dict[str, float]:
        return {name: _mean(scores) for name, scores in self._grouped(self.question_types).items()}

    def official(self) -> dict[str, float | dict[str, float]]:
        """The official script's `accuracy`: percentages of two decimals, under the keys that it uses."""
        by_answer, by_question = self._grouped(self.answer_types), self._grouped(self.question_types)
        return {
            "overall": round(_mean(self.per_question.tolist(), 100), 2),
            "perAnswerType": {name: round(_mean(scores, 100), 2) for name, scores in by_answer.items()},
            "perQuestionType": {name: round(_mean(scores, 100), 2) for name, scores in by_question.items()},
        }

    def _grouped(self, types: list[str]) -> dict[str, list[float]]:
        groups: dict[str, list[float]] = {}
        for name, score in zip(types, self.per_question.tolist(), strict=True):
            groups.setdefault(name, []).append(score)
        return groups


def _mean(scores: list[float], scale: int = 1) -> float:
    # the official order of operations, with Python's own sum: a figure on the edge of rounding falls to the same side
    return scale * sum(scores) / len(scores)


def vqa_scores(predictions: Mapping[int | str, str], annotations: Sequence[Mapping]) -> VQAScores:
    """Score the answers to a set of questions.

    Args:
        predictions: an answer for every question id; other questions are refused, as the official loader refuses them.
        annotations: the list `annotations` of an official file (`v2_mscoco_val2014_annotations.json`, OK-VQA's have the
            same layout): each with `question_id`, `answers` (each with `answer`), `answer_type` and `question_type`.
            Two entries of `answers` are two people: the official script tells people apart by comparing whole entries,
            which `answer_id` makes different in the published files.

    Raises:
        DataError: no annotations, a question twice, without a prediction, a field or human answers, or predictions for
            questions that do not exist.
    """
    question_ids, answer_types, question_types, scores = [], [], [], []
    for annotation in annotations:
        question = annotation.get("question_id", "?")
        try:
            humans = [human["answer"] for human in annotation["answers"]]
            question_ids.append(annotation["question_id"])
            answer_types.append(annotation["answer_type"])
            question_types.append(annotation["question_type"])
        except KeyError as error:
            raise DataError(f"annotation of question {question!r} has no {error}; give the official file") from None
        if question not in predictions:
            raise DataError(f"no prediction for question {question!r}; every annotated question needs an answer")
        if not humans:
            raise DataError(f"question {question!r} has no human answers; remove it from the annotations")
        scores.append(vqa_accuracy(predictions[question], humans))
    if not scores:
        raise DataError("no annotations to score against; the list is empty")
    _check_ids(question_ids, predictions)
    return VQAScores(question_ids, np.array(scores), answer_types, question_types)


def _check_ids(question_ids: list[int | str], predictions: Iterable[Hashable]) -> None:
    known = set(question_ids)
    if len(known) < len(question_ids):
        twice = Counter(question_ids).most_common(1)[0][0]
        raise DataError(f"question {twice!r} is annotated twice; keep one annotation for each question")
    unknown = [question for question in predictions if question not in known]
    if unknown:
        raise DataError(
            f"{len(unknown)} predictions answer questions that are not annotated, such as {unknown[0]!r}; "
            "give the annotations of the same split"
        )


def exact_match(prediction: str, answers: str | Sequence[str]) -> float:
    """1.0 if the prediction equals one of the answers after normalisation, else 0.0; GQA gives one answer a question.

    Raises:
        DataError: there is no answer to compare with.
    """
    answers = [answers] if isinstance(answers, str) else answers
    if not answers:
        raise DataError("exact_match: no answers; give at least one")
    return float(normalize_answer(prediction) in map(normalize_answer, answers))
