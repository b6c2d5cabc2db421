"""Our tokenizer against the official one: on hand-made cases, on all captions there are, and on generated text."""

import json
import random
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.ptb import tokenize
from vlm.errors import DataError

PIECES = r"""
a A ab The an don't can not cannot gonna 's 'S n't 'n' 'em 'tis o' d' y'all J. U.S. Mr. st. inc. Inc no. pp. fig p.m. 1
2 10 1/2 1,000 1.5 650 555 1234 (650) $ # @ & &amp; &lt; - -- ... .. . , ; : ! ? ' '' " ` `` ’ ‘ “ ” ( ) [ ] { } / \ * _
^ ~ = + % | < > <b> </b> é ñandú – — … ½ € £ © ° 中 www. .com .org/xy a.b x@y http://a.b/c :) :-( ^_^ 😀 I'm we've ph.d.
90s '90 T-shirt AT&T ol' c'mon e'er Hawai'i e.g. etc. .jpg
"""

CASES = {
    "A man's dog sits.": "a man 's dog sits",
    "the dogs' ball": "the dogs ball",
    "It can't, it won't, it DOESN'T": "it ca n't it wo n't it does n't",
    "couldn't've we'd they're I'm she'll": "could n't 've we 'd they 're i 'm she 'll",
    "a cannot gonna Wanna gimme lemme gotta": "a can not gon na wan na gim me lem me got ta",
    "gonnabe cannot-do wanna/be": "gonnabe cannot-do wanna/be",
    "'tis 'twas y'all ol' o'clock ma'am": "'t is 't was y' all ol' o'clock ma'am",
    "rock 'n' roll, rock'n'roll, rock n' roll": "rock 'n' roll rock 'n' roll rock n roll",
    "d'oeuvres O'Brien j'ai Hawai'i gov't nat'l": "d'oeuvres o'brien j' ai hawai'i gov t nat'l",
    "get 'em 'til the '90s, '05 '9": "get 'em 'til the '90s '05 9",
    "it's a “quoted” ‘word’, isn’t it?": "it 's a quoted word is n't it",
    "she said \"hi\" and 'bye' and ``so''": "she said hi and bye and so",
    "U.S. and U.K. at 5 p.m. in Washington D.C.": "u.s. and u.k. at 5 p.m. in washington d.c.",
    "Mr. Smith vs. Dr. No on St. Mary St.": "mr. smith vs. dr. no on st. mary st.",
    "No. 5, no.5, pp. 3, fig. 2, no. way": "no. 5 no. 5 pp. 3 fig. 2 no way",
    "Toys Inc. and Co., etc.": "toys inc. and co. etc.",
    "man I. A hood, a. b, vitamin a. The end": "man i a hood a. b vitamin a the end",
    "a dog.A cat a.b.c": "a dog.a cat a.b.c",
    "one dot., two dot.; three dot.": "one dot. two dot. three dot",
    "1,000 2,5 1.5 .5 10:30 10:30am -3 +4": "1,000 2,5 1.5 .5 10:30 10:30 am -3 +4",
    "1/2 and 1 1/2 and 1-1/2 and ½ and 3½": "1/2 and 1\xa01/2 and 1-1/2 and 1/2 and 3 1/2",
    "(650) 723-0293 or 650-723-0293": "-lrb-650-rrb-\xa0723-0293 or 650-723-0293",
    "12/25/2010 1990's 1st 2nd 50% 5ft 6'2\"": "12/25/2010 1990 's 1st 2nd 50 % 5ft 6 2",
    "#8 $5 $1.50 US$3 €5 £10 5¢": "# 8 $ 5 $ 1.50 us$ 3 $ 5 # 10 5 cents",
    "AT&T, R&B, rock & roll, a&b, A&amp;B": "at&t r&b rock & roll a & b a&b",
    "&amp; &lt;3 &quot;x&quot; &nbsp; &#39;": "& < 3 x &#39;",
    "a well-known T-shirt, x-ray, tan-and-white": "a well-known t-shirt x-ray tan-and-white",
    "half-eaten. beach--kite old- -new a-b.c": "half-eaten beach kite old new a-b c",
    "and/or brown/orange a/b/c/d /x": "and/or brown/orange a/b/c / d / x",
    "wait... what.. no…yes . . .": "wait what no yes",
    "dashes – — - -- --- ---- -----": "dashes -----",
    "(a) [b] {c} <d> -LRB-": "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb- <d> -lrb-",
    "<a href='x'>link</a> <3 a<b": "<a\xa0href='x'> link </a> < 3 a < b",
    "wow! what?! no!! ok? a!b": "wow what ?! no !! ok a!b",
    "mail a.b@c.com or www.foo.com/bar?x=1 http://x.org/a,b.": (
        "mail a.b@c.com or www.foo.com/bar?x=1 http://x.org/a,b"
    ),
    "@home #tag #1a google.com C++ C# photo1.jpg": "@home #tag # 1a google.com c++ c# photo1.jpg",
    ":) :-( ;) =D :a ^_^ (^_^)": ":-rrb- :--lrb- ;-rrb- =d a ^_^ -lrb-^_^-rrb-",
    "*star* a_b _c_ ~ x=y a+b 5°C 3×3": "* star * a_b _ c _ ~ x = y a + b 5 ° c 3 × 3",
    "café naïve Ångström 中文 señor's": "café naïve ångström 中文 señor 's",
    "a\u00a0b\tc\nd\r\ne": "a b c d e",
    "soft\u00adhyphen zero\u200bwidth e\u0301": "softhyphen zero width e\u0301",
    "dog😀cat 😀 a ❤ b": "dog cat a ❤ b",
    "„Hallo“ «oui» ‚a": "„ hallo oui ‚ a",
    "it;s a;b a:b a,b": "it s a b a b a b",
    "": "",
    " . , ": "",
}


@pytest.mark.parametrize("caption, expected", CASES.items())
def test_hand_made_cases(caption, expected):
    assert tokenize(caption) == expected.split(" ") * bool(expected)


def test_the_hand_made_cases_are_right(official_tokenize):
    cases = {caption.replace("\r", ""): expected for caption, expected in CASES.items()}  # there \r ends the caption
    apart = [text for caption in cases for text in (caption, "next")]  # some rules look at the next line
    assert dict(zip(cases, official_tokenize(apart)[::2], strict=True)) == cases


def assert_official(captions, tokenized):
    different = [
        (caption, " ".join(tokenize(caption)), expected)
        for caption, expected in zip(captions, tokenized, strict=True)
        if " ".join(tokenize(caption)) != expected
    ]
    assert not different, f"{len(different)} of {len(captions)}: {different[:5]}"


def test_every_caption(photos, photo_tokenize):
    captions = [caption for photo in photos for caption in photo]
    assert len(captions) == 40 or len(captions) > 4000
    assert_official(captions, photo_tokenize(captions))


def test_german_captions(own_captions):
    captions = own_captions["de"]
    assert_official(captions, [own_captions["tokens"][caption] for caption in captions])


@pytest.mark.slow
@pytest.mark.reference("data/train")
@pytest.mark.parametrize("language", ["captions", "de"])
def test_every_training_caption(language, reference, official_tokenize):
    captions = []
    for shard in sorted((reference / "data" / "train").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    captions += json.load(tar.extractfile(member) or pytest.fail(member.name)).get(language, [])
    assert len(captions) > 35_000
    assert_official(captions, official_tokenize(captions))


def test_generated_text(official_tokenize):
    pieces = PIECES.split()
    rng = random.Random(0)
    texts = []
    for _ in range(20_000):
        parts = [rng.choice(pieces) + rng.choice(["", " "]) for _ in range(rng.randint(2, 6))]
        texts.append("".join(parts).strip())
    apart = [text for caption in texts for text in (caption, "next")]
    assert_official(texts, official_tokenize(apart)[::2])


def test_not_text():
    with pytest.raises(DataError, match="caption 3 is a int"):
        tokenize(3)  # pyright: ignore[reportArgumentType]


@given(st.lists(st.text("abcdefgxyz", min_size=1), max_size=8))
def test_plain_words_are_lower_cased_and_nothing_else(words):
    assert tokenize(" ".join(words).upper()) == words
    assert tokenize(", ".join(words) + " .") == words


@given(st.text())
def test_any_text_gives_clean_tokens(text):
    for token in tokenize(text):
        assert token and token == token.lower() and not set(token) & set(" \t\n\r")
        assert token not in {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}


@given(st.text("ab1.,'- /"), st.text("ab1.,'- /"))
def test_a_line_end_is_a_blank(first, second):
    assert tokenize(f"{first}\n{second}") == tokenize(f"{first} {second}")
