"""The tokenizer: exact round trips, special ids out of the reach of text, the id layout, and damaged files."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from vlm.errors import ModelError, VLMError
from vlm.models.config import BOS, EOS, PAD, UNK
from vlm.tokenizer import SPECIALS, Tokenizer, train_tokenizer

SENTENCES = [
    " a dog runs through the tall grass",
    " two dogs are playing with a ball in the snow",
    " eine frau mit einem roten hut läuft über die straße",
    " 一只狗在草地上奔跑",
    " <s> <pad> </s> <unk> <mask> <bin_3> <code_1>",  # names of specials are text like any other, in training too
] * 20
TOKENIZER = train_tokenizer(SENTENCES, 400, num_codes=9, num_bins=16)
NUM_TEXT = TOKENIZER.num_text  # the sentences hold fewer than 400 pieces
NAMES = [*SPECIALS, "<mask>", "<bin_3>", "<code_1>"]


@given(st.text() | st.text(alphabet="ab \n\r\t\0<s>é狗🐕\u200d\u0301"))
def test_any_text_comes_back_unchanged(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize(
    "text", ["", " ", "\0", "a\r\nb", "  two  blanks  ", "👩🏽‍🚒", "\U0010ffff", "\ufeffx", "e\u0301 é"]
)
def test_awkward_texts_come_back_unchanged(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.text(max_size=8), st.sampled_from(NAMES), st.text(max_size=8))
def test_text_never_gives_a_special_id(before, name, after):
    ids = TOKENIZER.encode(before + name + after)
    start, end = TOKENIZER.text_range
    assert all(start <= i < end for i in ids)
    assert TOKENIZER.decode(ids) == before + name + after


def test_ids_lie_in_the_order_of_ofa():
    assert (BOS, PAD, EOS, UNK) == (0, 1, 2, 3)
    assert [TOKENIZER.bpe.id_to_token(i) for i in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert 256 < NUM_TEXT <= 400
    assert TOKENIZER.text_range == (4, NUM_TEXT + 4)
    assert TOKENIZER.mask_id == NUM_TEXT + 4
    assert TOKENIZER.code_start == NUM_TEXT + 5
    assert TOKENIZER.bin_start == NUM_TEXT + 5 + 9
    assert TOKENIZER.vocab_size == NUM_TEXT + 5 + 9 + 16
    plain = Tokenizer(TOKENIZER.bpe, NUM_TEXT)
    assert plain.code_start == plain.bin_start == plain.vocab_size == NUM_TEXT + 5


def test_pieces_are_those_of_the_library_four_ids_higher():
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    assert bpe.get_vocab_size() == NUM_TEXT
    for text in [*SENTENCES[:5], " a snowy dog's ball", "\n狗 straße <s>"]:
        assert TOKENIZER.encode(text) == [i + 4 for i in bpe.encode(text).ids]
    assert len(TOKENIZER.encode(SENTENCES[0])) < len(SENTENCES[0]) / 2  # merges were learned at all


def test_a_batch_equals_its_texts_one_by_one():
    texts = [*SENTENCES[:5], "", "🐕"]
    assert TOKENIZER.encode_batch(texts) == [TOKENIZER.encode(text) for text in texts]


def test_decoding_leaves_out_what_is_no_text():
    ids = TOKENIZER.encode(" a dog")
    everything = [BOS, PAD, TOKENIZER.mask_id, *ids, *range(TOKENIZER.code_start, TOKENIZER.vocab_size), UNK, EOS]
    assert TOKENIZER.decode(everything) == " a dog"


def test_locations_by_hand():
    # 16 bins: value * 15, rounded half to even as torch and numpy do, clipped to the ends
    expected = {0.0: 0, 1.0: 15, 0.5: 8, 1 / 3: 5, 0.1: 2, 0.04: 1, 0.03: 0, -0.2: 0, 1.7: 15}
    assert TOKENIZER.locations(expected) == [TOKENIZER.bin_start + step for step in expected.values()]
    assert TOKENIZER.locations([1.0]) == [TOKENIZER.vocab_size - 1]
    ids = [5, TOKENIZER.bin_start, TOKENIZER.bin_start - 1, TOKENIZER.bin_start + 3, TOKENIZER.vocab_size - 1]
    assert TOKENIZER.coordinates([*ids, TOKENIZER.vocab_size]) == [0.0, 0.2, 1.0]


@given(st.lists(st.floats(0, 1)))
def test_coordinates_come_back_within_half_a_step(values):
    found = TOKENIZER.coordinates(TOKENIZER.locations(values))
    assert found == pytest.approx(values, abs=0.5 / 15 + 1e-9)


def test_save_then_load_is_the_same_tokenizer(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json", 9, 16)
    assert loaded.bpe.to_str() == TOKENIZER.bpe.to_str()
    assert (loaded.num_text, loaded.num_codes, loaded.num_bins) == (NUM_TEXT, 9, 16)
    text = " a dog <s>\n狗"
    assert loaded.encode(text) == TOKENIZER.encode(text) and loaded.decode(loaded.encode(text)) == text
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_training_again_gives_the_same_tokenizer():
    # processes of one training each learn it, and must agree
    assert train_tokenizer(SENTENCES, 400).bpe.to_str() == TOKENIZER.bpe.to_str()


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"no JSON", b"\xff\xfe\x00", b'{"model": {"type": "BPE"}}'])
def test_a_damaged_file_is_one_clear_error(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"is not a tokenizer\.json") as caught:
        Tokenizer.load(file)
    assert str(caught.value).isprintable() and "tokenizer.json" in str(caught.value)


def test_a_truncated_file_is_one_clear_error(tmp_path):
    file = tmp_path / "tokenizer.json"
    TOKENIZER.save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ModelError, match=r"is not a tokenizer\.json"):
        Tokenizer.load(file)


def test_a_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer at") as caught:
        Tokenizer.load(tmp_path / "nothing.json")
    assert isinstance(caught.value, (VLMError, ValueError))
    with pytest.raises(ModelError, match=r"is not a tokenizer\.json"):
        Tokenizer.load(tmp_path)  # a folder
