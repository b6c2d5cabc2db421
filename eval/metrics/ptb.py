r"""Caption tokenizer that gives what the official one gives, without Java.

COCO's caption figures are computed on the tokens of Stanford CoreNLP 3.4.1's PTBTokenizer (options `-preserveLines
-lowerCase`), from which a list of punctuation tokens is then removed (pycocoevalcap, `tokenizer/ptbtokenizer.py`).
`tokenize` gives the same tokens. The rules below were found by experiment: that tokenizer was fed every code point of
the basic plane, every word of up to four letters and some millions of generated strings, and its answers compared.

The official tokenizer is a scanner: at each place the rule with the longest match wins, text that it only looks ahead
at included, and of two equally long ones the earlier. `_RULES` is such a list. What surprises at first:

* `can't` is `ca n't`, `cannot` is `can not`, `gonna` is `gon na`, but `gov't` is `gov t`.
* Hyphens and slashes hold words together (`well-known`, `and/or`) unless a dot follows (`a-b.c` is `a-b c`).
* Brackets become words, and stay: the removal list spells them in capitals, while the tokens are lower case, so that
  `(a)` is `-lrb- a -rrb-`. Runs such as `!!` and `?!` stay too, being on no list.
* A known abbreviation keeps its dot (`mr.`, `p.m.`), `no.` and its like do before a digit, any word does right before
  `,`, `;` or `:`. A single letter keeps it, but not before words that begin sentences (`vitamin a. The`).
* `1 1/2` and `(650) 723-0293` are one token each, with a no-break space inside.
* Characters that the official tokenizer does not know, emoji among them, vanish and split the word they stand in. (Its
  table of letters is an old one: 1.4 % of the basic plane, all in scripts that no caption set uses, come out otherwise
  here.)

One thing cannot be reproduced caption by caption. The official path reads all captions as one text, and two rules look
past the end of a line: a caption that ends in a single letter and a dot loses that dot if the next caption begins with
`A`, `The` or another of `_OPENERS`, and one that ends in `no.` keeps it if the next begins with a digit. Here each
caption stands alone.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from vlm.errors import DataError

# pycocoevalcap's list of tokens that are not words. Tokens are lower case by then, so that the brackets never match.
_PUNCTUATION = frozenset({"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:-;", "--", "..."})

# Marks that count as letters; numerals that do not, although \w holds them; signs that are tokens (others are dropped).
_MARKS = (
    "˂-˅˒-˟˥-˫˭˯-\u036f͵\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0615-\u061a\u064b-\u065e\u0670"
    "\u06d6-\u06e4\u06e7-\u06ed\u0711\u0730-\u074c\u0900-\u0903\u093c\u093e-\u094e\u0951-\u0955\u0962\u0963\u0981-\u0983"
    "\u09bc\u09be-\u09cd\u0e31\u0e34-\u0e3a\u0e47-\u0e4e"
)
_NUMERALS = "²³¹¼-¾⁰⁴-⁹₀-₉⅐-↉①-⓿❶-➓〇〡-〩"
_SIGNS = (
    r"!-/:-@\[-`{-~¡¥-©¬®-´¶-¹¿×÷;·։־׀׃׆׳״؀-؃؆-،؛؞؟٪٭۔।॥฿‖‗‚„-‣‰-‸※‾-⁂⁄⁰⁴-⁾₀-₎₤℀℁℃-℆℈℉℔№-℘℞-℣℥℧℩℮℺℻"
    r"⅀-⅄⅊-⅍⅏⅕-⅞←-⯿、。〒・！-／：-＠［-｀｛-･￠￡￥￦"
)
_L = rf"[^\W\d_{_NUMERALS}]"  # letter
_LD = rf"[^\W_{_NUMERALS}]"  # letter or digit
_APOS = r"(?:['’\x92]|&apos;)"
_APOS_LIKE = r"(?:['’\x92`‘\x91‛]|&apos;)"

_WORD_PART = rf"(?:{_L}|[{_MARKS}])(?:{_LD}|[{_MARKS}])*"
_WORD = rf"{_WORD_PART}(?:[.!?]{_WORD_PART})*"
_ENDING = rf"{_APOS}(?i:[msd]|re|ve|ll)"
_ELISION = rf"[dDoOlL]{_APOS_LIKE}{_LD}"  # d'oeuvre, o'clock
_COMPOUND = rf"(?:{_ELISION})?{_LD}+(?:[-_֊‐‑](?:{_ELISION})?{_LD}+)*"
_DOTTED_COMPOUND = r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:(?:[A-Za-z]\.){2,}|[A-Za-z0-9]+))+"  # 1,000-foot, x-U.S.
_INITIALS = r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"  # AT&T
_NUMBER = r"(?:\d*(?:[.:,٫٬]\d+)+|\d+)"
_PHONE = (
    r"(?:\(\d{2,3}\)[ \xa0]?|(?:\+\+?)?(?:\d{2,4}[- \xa0])?\d{2,4}[- \xa0])\d{3,4}[- \xa0]?\d{3,5}"
    r"|(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5}"
)
_NAME = r"[A-Za-z][A-Za-z0-9_:.-]*"
_TAG = rf"<[!?][A-Za-z-][^>]*>|</{_NAME} *>|<{_NAME}(?: +{_NAME}(?:=(?:\"[^\"]*\"|'[^']*'))?)* */? *>"
_ADDRESS_TAIL = r"(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?"
_FILE_TYPES = (
    "bat|bmp|c|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql"
    "|tar|txt|wav|x|xml|zip"
)
_EYE = r"[-^x=~<>']"

# Abbreviations, which keep their dot. Those of the first kind look two characters further, and so win over a word of
# one letter more: `assn.a` is `assn. a`, but `st.a` one word.
_ABBREVIATIONS = (
    r"(?:(?i:al|co|ct|ga|jr|ky|md|mo|rd|rt|sq|sr|va|vt|ala|apr|aug|bhd|cos|dak|dec|esq|est|etc|ext|feb|fla|fri|inc|ind|jan|jul|jun"
    r"|kan|ltd|mar|mon|neb|nev|nov|oct|plc|sep|seq|sys|tel|thu|tue|wed|wis|wyo|ariz|assn|bldg|blvd|bros|colo|conn|corp|intl|kans"
    r"|mich|minn|mont|okla|penn|sept|tenn|tues|univ|wisc|bancorp|calif|thurs|ph\.d)|[Pp]p?t[ey]s?"
    r"|A(?i:z|rk)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass|iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash))"
)
_TITLES = (
    r"(?:(?i:cf|dr|ft|lt|mr|ms|mt|ph|st|vs|wm|adj|adm|adv|ave|cie|col|cpl|det|drs|ens|gen|gov|hon|jos|maj|mme|mrs|pfc|pvt|rep|rev"
    r"|sen|sfc|sgt|spc|ste|alex|asst|atty|brig|capt|cmdr|dept|elec|govs|insp|invt|mlle|msgr|natl|pres|prof|reps|sens|supt|assoc"
    r"|attys|lieut|messrs|profs|supts|treas|comdr)|[Mm][ft]g)"
)
# Words that begin a sentence after a single letter and a dot.
_OPENERS = (
    r"(?=[A-Z])(?i:an?|about|according|additionally|after|as|at|but|earlier|her?|here|however|if|in|it|last|many|more|mr\."
    r"|ms\.|now|once|one|other|our|she|since|so|some|such|that|the|their|then|there|these|they|this|we|what|when|while|yet"
    r"|you)"
)

_BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"})
_INSIDE = str.maketrans({"(": "-lrb-", ")": "-rrb-", " ": "\xa0"})  # within a token
_QUOTES = str.maketrans(
    {
        **dict.fromkeys("‘‛‹\x91", "`"),
        **dict.fromkeys("’›\x92", "'"),
        **dict.fromkeys("“«\x93", "``"),
        **dict.fromkeys("”»\x94", "''"),
    }
)
_MONEY = str.maketrans({"¢": "cents", "£": "#", **dict.fromkeys("€¤₠\x80", "$")})
_FRACTIONS = str.maketrans({"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"})
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">"}


def _translate(table: dict[int, str]) -> Callable[[str], str]:
    return lambda text: text.translate(table)


def _straighten(text: str) -> str:
    return text.replace("&apos;", "'").translate(_QUOTES)


def _drop(_: str) -> str:
    return ""


_TWO_IN_ONE = frozenset({"cannot", "gimme", "gonna", "gotta", "lemme", "wanna"})

# A pattern and what its token becomes (None: itself). Where the pattern has a group, the token is the group, and what
# follows it is only looked at.
_RULES: list[tuple[re.Pattern[str], Callable[[str], str] | None]] = [
    (re.compile(pattern, re.DOTALL), rewrite)
    for pattern, rewrite in (
        # two words in one: can not, gim me, gon na, got ta, 't is, dog 's, could n't
        (r"(?i:(can)not|(gim|lem)me|(gon|wan)na|(got)ta)", None),
        (r"('[tT])(?i:is|was)", None),
        (_TAG, _translate(_INSIDE)),
        (rf"({_WORD}){_ENDING}", None),
        (rf"([A-Za-z]*[A-MO-Za-mo-z])[nN]{_APOS_LIKE}[tT]", None),
        (_WORD, None),
        # words with an apostrophe of their own
        (rf"{_APOS}[nN]{_APOS}|(?:[’\x92]|&apos;)[nN]|{_APOS}(?i:em|till?|cause)|[lLdDjJ]{_APOS}", None),
        (rf"(?i:(?:dunkin|somethin|ol){_APOS}|c{_APOS}est|cap{_APOS}n|o{_APOS_LIKE}o)", None),
        (r"(?i:c'mon|li'l|e'er|ev'ry|nat'l)", None),
        (rf"({_APOS}[nN])\s", None),
        (rf"([yY]{_APOS}){_L}", None),
        (rf"(?:n|[A-HJ-XZ]|[qQ][uU]){_APOS_LIKE}{_L}{{2,}}", None),
        (rf"({_ENDING}|[nN]{_APOS_LIKE}[tT])[^A-Za-z]|[’\x92](?i:[msd]|re|ve|ll)", _straighten),
        (rf"{_L}+[aeiouyAEIOUY]{_APOS_LIKE}[aeiouA-Z]{_L}*", None),
        # addresses and handles
        (r"[hH][tT][tT][pP][sS]?://[^\s\"<>|(){}]+[^\s\"<>|.!?(){},-]", None),
        (rf"www\.(?:[^\s\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}{_ADDRESS_TAIL}", None),
        # ",-_" is a range there too, so that names with digits or capitals are none
        (rf"(?:[^\s\"<>|!?(){{}},-_$`']+\.)+(?:com|net|org|edu){_ADDRESS_TAIL}", None),
        (r"(?:<|&lt;)?[A-Za-z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+>?", None),
        (rf"@[A-Za-z_][A-Za-z_0-9]*|#{_L}+", None),
        # numbers
        (r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}", None),
        (rf"[-+]?{_NUMBER}", None),
        (r"(?:\d{1,4}[- \xa0])?\d{1,4}(?:\\?/|⁄)\d{1,4}", _translate(_INSIDE)),
        (_PHONE, _translate(_INSIDE)),
        (r"[¼½¾⅓⅔]", _translate(_FRACTIONS)),
        (rf"({_APOS}\d\d)\s", None),
        (rf"{_APOS}\d0s", None),
        # joined words, abbreviations
        (_COMPOUND, None),
        (_INITIALS, lambda text: text.replace("&amp;", "&")),
        (r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}", None),
        (rf"({_ABBREVIATIONS}\.)..", None),
        (rf"(?:{_ABBREVIATIONS}|{_TITLES}|[A-Za-z](?:\.[A-Za-z])*)\.", None),
        (rf"({_LD}+(?:\.{_LD}+)*\.(?i:{_FILE_TYPES}))[\s.,!?]", None),
        (_DOTTED_COMPOUND, None),
        (r"((?i:nos?|figs?|pp|art|op|ca)\.)\s?\d", None),
        (rf"([A-Za-z])\.\s+(?:{_OPENERS}|{_TAG})\s", None),
        (rf"((?:{_WORD}|{_COMPOUND}|{_DOTTED_COMPOUND}|{_INITIALS})\.)[,;:]", None),
        # signs
        (r"-(?:LRB|RRB|LCB|RCB|LSB|RSB)-", None),
        (r"\.{3,5}|…|\x85|-{2,4}|[\x96\x97–-―]|&(?:MD|mdash|ndash);|''|\"|'|&(?:nbsp|quot|apos);", _drop),
        (r"[cC]\+\+|[cCfF]#|-{5,}|\*+|\\\*|_+|[!?]+|##+|@+|<<|>>|&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#\d+);", None),
        (r"[`‘’‹›“”«»\x91-\x94‛]{1,2}", _translate(_QUOTES)),
        (r"[()\[\]{}]", _translate(_BRACKETS)),
        (r"&(?i:amp|lt|gt);", lambda text: _ENTITIES[text.lower()]),
        (r"[A-Z]*\$|#", None),
        (r"[¢£¤€₠\x80]", _translate(_MONEY)),
        (r"([<>]?[:;=][-o*']?[()DPdpO\\@|\[\]{])[^A-Za-z0-9]", _translate(_INSIDE)),
        (rf"{_EYE}_{_EYE}|\({_EYE}[_.]?{_EYE}\)|\({_EYE}-[-^x=~<>'`]\)", _translate(_INSIDE)),
        (rf"[{_SIGNS}]", None),
    )
]

# Where a token can reach over white space: tags, numbers of two parts, and dots that the next word decides on.
_REACHES_OVER = re.compile(rf"<|\d\)?\s[\d(]|[a-zA-Z]\.\s+(?:\d|{_OPENERS}(?:\s|$))")


def _scan(text: str) -> tuple[str, ...]:
    """Every token of `text`, lower case and without punctuation."""
    text += "\n\n"  # rules look up to two characters ahead
    tokens = []
    start, end = 0, len(text)
    while start < end:
        best, token, rewrite = start, None, None
        for pattern, rule_rewrite in _RULES:
            match = pattern.match(text, start)
            if match and match.end() > best:
                best, token, rewrite = match.end(), match, rule_rewrite
        if token is None:  # white space, or a character that the official tokenizer does not know
            start += 1
            continue
        group = token.lastindex or 0
        start = token.end(group)
        word = (rewrite(token[group]) if rewrite else token[group]).lower()
        if word and word not in _PUNCTUATION:
            tokens.append(word)
    return tuple(tokens)


@lru_cache(maxsize=1 << 17)
def _scan_word(word: str) -> tuple[str, ...]:
    if word.isascii() and word.isalpha() and word.lower() not in _TWO_IN_ONE:
        return (word.lower(),)  # most words: no rule but one could match
    return _scan(word)


def tokenize(caption: str) -> list[str]:
    """Words of a caption as the official COCO evaluation counts them.

    Line ends and soft hyphens inside the caption are treated as the official path does: a blank, and nothing.

    Args:
        caption: any text.

    Returns:
        Lower-cased tokens without punctuation; none for a caption without words.

    Raises:
        DataError: the caption is not a string.
    """
    if not isinstance(caption, str):
        raise DataError(f"caption {caption!r} is a {type(caption).__name__}, not text; pass a string")
    if not caption.isascii():
        caption = caption.replace("\u00ad", "")
    if _REACHES_OVER.search(caption):
        return list(_scan(caption.replace("\n", " ")))
    # here every token ends at white space, and there are far fewer different words than captions
    return [token for word in caption.split() for token in _scan_word(word)]
