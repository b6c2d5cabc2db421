"""What one set of weights learns beside captions and answers: boxes, phrases, matching, gaps, other languages."""

import json
import random
import re
from collections import Counter

import pytest

from vlm.data.shards import Sample
from vlm.errors import DataError
from vlm.models.config import BOS, EOS
from vlm.tasks import TASKS, TrainingRules
from vlm.tasks.boxes import phrases_with_box
from vlm.tasks.complete import with_gaps
from vlm.tasks.match import ALIKE
from vlm.tokenizer import train_tokenizer

TEXTS = [" a red dog runs", ' which region does the text " a dog " describe?', " yes no", " ein hund rennt", "一只狗"]
TOKENIZER = train_tokenizer(TEXTS, 300, num_bins=100)
PHRASES = [
    {"text": "A red dog", "boxes": [[0.25, 0.5, 0.75, 1.0]]},
    {"text": "a red dog", "boxes": [[0.25, 0.5, 0.75, 1.0]]},  # in another caption
    {"text": "two cats", "boxes": [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5]]},
    {"text": "a man", "boxes": [[0, 0, 0.1, 1]]},
    {"text": "a man", "boxes": [[0.8, 0, 1, 1]]},  # another man: the phrase does not say which
    {"text": "the sky", "boxes": [], "scene": True},
    {"text": "a thin line", "boxes": [[0.5, 0.5, 0.5, 0.9]]},
    {"text": "today"},
]
SAMPLE = Sample(
    "photo",
    b"",
    ("A red dog runs.", "The dog, running!"),
    fields={
        "phrases": PHRASES,
        "zh": ["一只狗在跑。"],
        "de": ["Ein Hund rennt.", "Ein roter Hund"],
        ALIKE: [["A blue dog sleeps."]],
    },
)


def examples(task: str, count: int = 1, seed: int = 0, sample: Sample = SAMPLE):
    bound = TASKS[task](TOKENIZER, 64, rules=TrainingRules(max_tokens=30))
    return bound.examples(sample, random.Random(seed), count)


def read(ids: list[int]) -> str:
    return TOKENIZER.decode([i for i in ids if i not in (BOS, EOS)])


def answer_of(example) -> list[int]:
    assert example.target[-1] == EOS and example.previous[0] == BOS
    assert example.previous[1:] == example.target[:-1]
    return example.target[:-1]


def test_phrases_name_one_thing():
    assert phrases_with_box(SAMPLE) == [("a red dog", [0.25, 0.5, 0.75, 1.0])]
    assert phrases_with_box(Sample("a", b"")) == []


@pytest.mark.parametrize("bad", [["a dog"], [{"boxes": []}], [{"text": "a", "boxes": [["x"]]}], [{"text": 3}]])
def test_phrases_of_another_form(bad):
    with pytest.raises(DataError, match=r"sample 'p': phrases holds .*; give objects of text and boxes"):
        phrases_with_box(Sample("p", b"", fields={"phrases": bad}))


def test_a_phrase_teaches_its_box():
    (example,) = examples("ground")
    assert read(example.source) == ' which region does the text " a red dog " describe?'
    places = [i - TOKENIZER.bin_start for i in answer_of(example)]
    assert places == [round(v * 99) for v in (0.25, 0.5, 0.75, 1.0)]
    task = TASKS["ground"](TOKENIZER, 64)
    assert list(task.checks(SAMPLE)) == [(("a red dog",), [json.dumps([0.25, 0.5, 0.75, 1.0])])]


def test_a_box_teaches_its_phrase():
    (example,) = examples("describe_region")
    assert read(answer_of(example)) == " a red dog"
    places = [i - TOKENIZER.bin_start for i in example.source if i >= TOKENIZER.bin_start]
    assert places == [round(v * 99) for v in (0.25, 0.5, 0.75, 1.0)]


@pytest.mark.parametrize(
    "task, texts",
    [("caption_zh", {"一只狗在跑"}), ("caption_de", {"ein hund rennt", "ein roter hund"})],
)
def test_captions_in_other_languages(task, texts):
    found = examples(task, 4)
    assert {read(answer_of(example)).strip() for example in found} == texts
    assert len({tuple(example.source) for example in found}) == 1  # one instruction, the task's own
    assert found[0].source != examples("caption")[0].source
    assert examples(task, sample=Sample("a", b"", ("a dog",))) == []
    assert TASKS[task].in_sample(SAMPLE) and not TASKS[task].in_sample(Sample("a", b"", ("a dog",)))


def test_matching_learns_true_and_false_sentences_alike():
    seen: Counter[str] = Counter()
    true = {"a red dog runs", "the dog running"}
    for seed in range(200):
        for example in examples("match", 2, seed):
            sentence = re.fullmatch(r' does the image describe " (.*) "\?', read(example.source))
            assert sentence
            answer = read(answer_of(example)).strip()
            assert answer == ("yes" if sentence[1] in true else "no")
            seen[answer] += 1
            seen["alike"] += sentence[1] == "a blue dog sleeps"
    assert abs(seen["yes"] - 200) < 40 and 20 < seen["alike"] < 150
    asked = list(TASKS["match"](TOKENIZER, 64).checks(SAMPLE))
    assert asked == list(TASKS["match"](TOKENIZER, 64).checks(SAMPLE))  # validation asks the same every time
    assert Counter(answer for _, (answer,) in asked) == {"yes": 2, "no": 2}


def test_gaps_hide_words_and_the_answer_is_the_whole_text():
    hidden: list[float] = []
    for seed in range(300):
        words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
        shown = with_gaps(" ".join(words), random.Random(seed)).split()
        assert 1 <= shown.count("<mask>") <= 2
        left = [word for word in shown if word != "<mask>"]
        assert left == [word for word in words if word in left]  # in order
        hidden.append(1 - len(left) / 10)
    assert 0.1 < sum(hidden) / len(hidden) < 0.4
    assert all(set(with_gaps("a red dog", random.Random(seed)).split()) > {"<mask>"} for seed in range(50))
    (example,) = examples("complete")
    assert read(answer_of(example)) in (" a red dog runs", " the dog running")
    assert TOKENIZER.mask_id in example.source


def questions_of(sample: Sample, made: float, count: int = 8, seeds: int = 50) -> list[tuple[str, str]]:
    task = TASKS["answer"](TOKENIZER, 64, rules=TrainingRules(made_questions=made))
    found = [task.examples(sample, random.Random(seed), count) for seed in range(seeds)]
    assert all(len(some) in (0, count) for some in found)
    return [(read(one.source).strip(), read(answer_of(one)).strip()) for some in found for one in some]


def test_questions_are_made_as_often_as_the_rules_say():
    asked = Sample("a", b"", ("A red dog runs.",), fields={"vqa": [{"question": "Who?", "answers": ["it"]}]})
    assert set(questions_of(asked, 0.0)) == {("who?", "it")}
    found = Counter(question == "who?" for question, _ in questions_of(asked, 0.6))
    assert 0.55 < found[False] / found.total() < 0.65
    made = {pair for pair in questions_of(asked, 0.6) if pair[0] != "who?"}
    assert ("what color is the dog?", "red") in made and len(made) > 2
    unasked = Sample("a", b"", ("A red dog runs.",))
    assert questions_of(unasked, 0.0) == [] and set(questions_of(unasked, 0.6)) == made
    assert questions_of(Sample("a", b""), 0.6) == []  # nothing is known
    plain = Sample("a", b"", fields=asked.fields)  # nothing to make questions from: the real ones fill the batch
    assert set(questions_of(plain, 0.6)) == {("who?", "it")}
