"""OFA's vocabularies: the ids of the original, one tokenizer from every layout, missing and damaged files."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from vlm.convert.ofa.tokenizer import is_chinese, load_tokenizer, read_dictionary
from vlm.errors import ModelError
from vlm.models.config import UNK
from vlm.tokenizer import SPECIALS, Tokenizer

# A vocabulary of GPT-2's kind, small enough to be read: bytes, then what is merged. Its numbers are those of
# encoder.json, its ids those of dict.txt, which lists them by how often they occur.
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("Ġ", "a"), ("d", "o"), ("do", "g"), ("Ġ", "dog")]
NUMBERS = {piece: i for i, piece in enumerate([*BYTES, *("".join(pair) for pair in MERGES)])}
ORDER = [*reversed(NUMBERS.values())]


@pytest.fixture
def bpe_folder(tmp_path) -> Path:
    """The layout of the original."""
    return write_bpe(tmp_path / "BPE")


def write_bpe(folder: Path) -> Path:
    folder.mkdir()
    (folder / "encoder.json").write_text(json.dumps(NUMBERS))
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES), encoding="utf-8")
    (folder / "dict.txt").write_text("".join(f"{n} {9 * n}\n" for n in ORDER) + "madeupword0000 0\n")
    return folder


@pytest.fixture
def hub_folder(bpe_folder, tmp_path) -> Path:
    """The same in the layout of transformers."""
    folder = tmp_path / "hub"
    folder.mkdir()
    names = {number: piece for piece, number in NUMBERS.items()}
    pieces = [*SPECIALS, *(names[n] for n in ORDER), "madeupword0000", "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text((bpe_folder / "vocab.bpe").read_text(encoding="utf-8"), encoding="utf-8")
    return folder


CHINESE = ["[PAD]", "[UNK]", "一", "只", "狗", "在", "跑", "，", "dog", "##gy", "a"]


@pytest.fixture
def chinese_folder(tmp_path) -> Path:
    folder = tmp_path / "BERT_CN_dict"
    folder.mkdir()
    (folder / "dict.txt").write_text("".join(f"{symbol} 0\n" for symbol in CHINESE), encoding="utf-8")
    return folder


# Against the original


@pytest.fixture(scope="module")
def original(golden) -> tuple[Tokenizer, dict]:
    """The original's vocabulary, or some of its pieces, and samples of text."""
    samples = json.loads((golden / "data" / "data_golden.json").read_text(encoding="utf-8"))
    return load_tokenizer(golden / "bpe"), samples


@pytest.mark.reference("ofa_golden")
def test_the_sizes_of_the_whole_vocabulary(reference):
    tokenizer = load_tokenizer(reference / "ofa_golden" / "bpe")
    assert (tokenizer.vocab_size, tokenizer.mask_id) == (59457, 50264)


def test_the_layout_is_that_of_the_original(original):
    tokenizer, samples = original
    layout = samples["vocabulary"]
    assert (tokenizer.vocab_size, tokenizer.mask_id) == (layout["size"], layout["mask"])
    assert (tokenizer.code_start, tokenizer.bin_start) == (layout["code_0"], layout["bin_0"])


def test_all_samples_of_text(original):
    tokenizer, samples = original
    assert len(samples["tokenizer"]) in (20, 73)
    for sample in samples["tokenizer"]:
        assert tokenizer.encode(sample["text"]) == sample["ids"], sample["text"]
        assert tokenizer.decode(sample["ids"]) == sample["decoded"]
    texts = [sample["text"] for sample in samples["tokenizer"]]
    assert tokenizer.encode_batch(texts) == [sample["ids"] for sample in samples["tokenizer"]]


def test_all_samples_of_symbols(golden, original):
    symbols, samples = read_dictionary(golden / "bpe" / "dict.txt"), original[1]["no_bpe"]
    assert len(symbols) == original[0].vocab_size and len(samples) == 7
    for sample in samples:
        assert [symbols.get(word, UNK) for word in sample["text"].split()] == sample["ids"]


def test_transformers_files_give_the_same_ids(golden, original, tmp_path):
    """The publisher's vocab.json is the piece of each id: here it is made from the original's files."""
    tokenizer = original[0]
    pieces = {tokenizer.bpe.id_to_token(i): i for i in range(tokenizer.mask_id)} | {"<mask>": tokenizer.mask_id}
    (tmp_path / "vocab.json").write_text(json.dumps(pieces))
    (tmp_path / "merges.txt").write_bytes((golden / "bpe" / "vocab.bpe").read_bytes())
    other = load_tokenizer(tmp_path)
    assert other.bpe.to_str() == tokenizer.bpe.to_str() and other.vocab_size == tokenizer.vocab_size


def test_saved_and_loaded_it_is_the_same(original, tmp_path):
    tokenizer, samples = original
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json", 8192, 1000)
    assert loaded.vocab_size == tokenizer.vocab_size
    assert [loaded.encode(s["text"]) for s in samples["tokenizer"]] == [s["ids"] for s in samples["tokenizer"]]


# Layouts


def test_ids_by_hand(bpe_folder):
    tokenizer = load_tokenizer(bpe_folder)
    # 256 bytes and 4 merges, the last merge first: " dog" 4, "dog" 5, "do" 6, " a" 7, then the bytes backwards
    assert tokenizer.encode(" a dog") == [7, 4] and tokenizer.encode("dog") == [5]
    assert tokenizer.num_text == 256 + 4 + 1 and tokenizer.mask_id == 265
    assert (tokenizer.code_start, tokenizer.bin_start) == (266, 266 + 8192)
    assert tokenizer.decode([0, 7, 4, 2]) == " a dog"
    assert not is_chinese(tokenizer)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return load_tokenizer(write_bpe(tmp_path_factory.mktemp("tokenizer") / "BPE"))


@settings(deadline=None)
@given(st.text() | st.sampled_from(["<mask>", "madeupword0000", "<s>", "<bin_1>"]))
def test_text_never_gives_what_is_no_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert all(4 <= i < tokenizer.mask_id - 1 for i in ids)  # the filler is the last
    assert tokenizer.decode(ids) == text


def test_every_layout_gives_the_same_tokenizer(bpe_folder, hub_folder):
    expected = load_tokenizer(bpe_folder).bpe.to_str()
    assert load_tokenizer(hub_folder).bpe.to_str() == expected
    pieces = json.loads((hub_folder / "vocab.json").read_text())
    more = pieces | {f"<code_{i}>": len(pieces) + i for i in range(5)}  # some files go on
    (hub_folder / "vocab.json").write_text(json.dumps(more))
    assert load_tokenizer(hub_folder).bpe.to_str() == expected
    (bpe_folder / "vocab.bpe").rename(bpe_folder / "merges.txt")
    assert load_tokenizer(bpe_folder).bpe.to_str() == expected


def test_a_hub_id_is_fetched(hub_folder, monkeypatch):
    asked = []

    def fetch(name, allow_patterns, ignore_patterns):
        asked.append((name, allow_patterns))
        return str(hub_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert load_tokenizer("owner/name").num_text == 261
    assert asked[0][0] == "owner/name" and {"vocab.json", "merges.txt"} <= set(asked[0][1])


# Chinese


def test_chinese_pieces_by_hand(chinese_folder):
    tokenizer = load_tokenizer(chinese_folder)
    assert is_chinese(tokenizer) and tokenizer.num_text == len(CHINESE) and tokenizer.mask_id == 4 + len(CHINESE)
    ids = {symbol: i + 4 for i, symbol in enumerate(CHINESE)}
    assert tokenizer.encode("一只狗，在 A DOGGY") == [
        ids[s] for s in ("一", "只", "狗", "，", "在", "a", "dog", "##gy")
    ]
    assert tokenizer.encode("猫") == [ids["[UNK]"]]
    assert tokenizer.decode(tokenizer.encode("一只狗，在跑")) == "一只狗，在跑"
    assert tokenizer.decode(tokenizer.encode("狗 a doggy")) == "狗 a doggy"


def test_bert_itself_cuts_alike(chinese_folder):
    import transformers

    (chinese_folder / "vocab.txt").write_text("\n".join(CHINESE) + "\n", encoding="utf-8")
    bert = transformers.BertTokenizer(str(chinese_folder / "vocab.txt"), cls_token="[PAD]", sep_token="[PAD]")
    tokenizer = load_tokenizer(chinese_folder)
    for text in ["一只狗在跑", " 一只  Doggy，在\n跑!", "ädog dog", "", "一a狗"]:
        assert [tokenizer.bpe.id_to_token(i) for i in tokenizer.encode(text)] == bert.tokenize(text)
    (chinese_folder / "dict.txt").unlink()  # BERT's own file has the same symbols in the same order
    assert load_tokenizer(chinese_folder).bpe.to_str() == tokenizer.bpe.to_str()


def test_a_saved_chinese_tokenizer_is_chinese(chinese_folder, tmp_path):
    load_tokenizer(chinese_folder).save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json", 8192, 1000)
    assert is_chinese(loaded) and loaded.vocab_size == 4 + len(CHINESE) + 1 + 8192 + 1000
    assert loaded.decode(loaded.encode("一只狗")) == "一只狗"


# Missing and damaged files


def refusal(source) -> str:
    with pytest.raises(ModelError) as caught:
        load_tokenizer(source)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("missing", ["dict.txt", "encoder.json", "vocab.bpe"])
def test_a_missing_file_says_where_to_get_it(bpe_folder, missing):
    (bpe_folder / missing).unlink()
    message = refusal(bpe_folder)
    assert "no OFA vocabulary in" in message and "utils/BPE of the repository OFA-Sys/OFA" in message


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_a_missing_file_of_transformers_says_where_to_get_it(hub_folder, missing):
    (hub_folder / missing).unlink()
    assert "one with vocab.json and merges.txt, or a hub id" in refusal(hub_folder)


@pytest.mark.parametrize("name", ["/no/such/folder", "nothing", "a/b/c", "./a/b"])
def test_no_folder(name):
    assert f"no folder {name!r}; give tokenizer=" in refusal(name)


def test_a_failing_network_is_one_line(monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert "'owner/name' is not a local folder and could not be fetched from the hub: no route" in refusal("owner/name")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("dict.txt", "13\n", "dict.txt', line 1: '13' is not a new symbol"),
        ("dict.txt", "13 1\n13 1\n", "dict.txt', line 2: '13 1' is not a new symbol"),
        ("dict.txt", "13 1\n\n", "dict.txt', line 2: '' is not a new symbol"),
        ("dict.txt", "999 1\n", "has no piece 999"),
        ("encoder.json", "{", "encoder.json' is not JSON"),
        ("encoder.json", '{"a": "b"}', "encoder.json' does not map pieces to numbers"),
        ("encoder.json", "[1]", "encoder.json' does not map pieces to numbers"),
        ("vocab.bpe", "a b c\n", "vocab.bpe' does not fit the vocabulary beside it"),
        ("vocab.bpe", "nothing here\n", "vocab.bpe' does not fit the vocabulary beside it"),
    ],
)
def test_damaged_files(bpe_folder, name, content, message):
    (bpe_folder / name).write_text(content)
    assert message in refusal(bpe_folder)


def test_bytes_that_are_no_text(bpe_folder):
    (bpe_folder / "vocab.bpe").write_bytes(b"\xff\xfe\x00")
    assert "vocab.bpe' cannot be read" in refusal(bpe_folder)


@pytest.mark.parametrize("change", [{"<s>": 1, "<pad>": 0}, {"a": 9999}])
def test_the_vocabulary_of_another_model(hub_folder, change):
    pieces = json.loads((hub_folder / "vocab.json").read_text())
    (hub_folder / "vocab.json").write_text(json.dumps({**pieces, **change, "<mask>": 100000}))
    assert "vocab.json' is not OFA's: its ids must count up from <s> 0" in refusal(hub_folder)
