"""Miniature models of transformers with random weights, in the layouts that their publishers ship."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from PIL import Image
from tokenizers import decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from eval.models import peers

tf: Any = transformers  # its names appear on first use

SAMPLES = Path(__file__).resolve().parents[3] / "datasets/sample"
SENTENCES = (
    "is it a cat? how many dogs? what colour is the cup of coffee on the table? a picture of two red people",
    *peers.Chat.prompts.values(),
    "Locate the phrases in the caption: What does the image describe? User: Assistant:",
)
WORDS = sorted(set(SENTENCES[0].replace("?", " ?").split()))
LAYERS: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION: dict[str, Any] = LAYERS | {"image_size": 32, "patch_size": 8}
# the shape of the chat template that SmolVLM ships
TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}:{% for part in m['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def random(model, seed: int = 0):
    """Weights so large that photo and prompt decide every token; under a seed that makes it say several things."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.35)
            elif name.endswith("predictions.bias"):
                parameter[:5] = -100  # BERT's special tokens: words only
    return model


def words(**options):
    """BERT's tokenizer, for whole words."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return tf.BertTokenizer(vocab={word: i for i, word in enumerate(specials + WORDS)}, **options)


def pieces(specials: list[str]):
    """A byte-level BPE."""
    bpe = tokenizers.Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    bpe.train_from_iterator(SENTENCES, trainer)
    return bpe


def save_blip(folder: Path, architecture: str) -> None:
    tokenizer = words(bos_token="[DEC]", model_input_names=["input_ids", "attention_mask"])
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    text = LAYERS | ids | {"vocab_size": len(tokenizer), "encoder_hidden_size": 32, "max_position_embeddings": 64}
    model = getattr(tf, architecture)(tf.BlipConfig(text_config=text, vision_config=VISION))
    random(model, seed=2).save_pretrained(folder)
    save_parts(folder, "BlipProcessor", tokenizer, tf.BlipImageProcessor(size={"height": 32, "width": 32}))


def save_git(folder: Path) -> None:
    tokenizer = words()
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 64}
    config = tf.GitConfig(vocab_size=len(tokenizer), vision_config=VISION, **LAYERS, **ids)
    random(tf.GitForCausalLM(config)).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    save_parts(folder, "GitProcessor", tokenizer, tf.CLIPImageProcessor(**sizes))


def save_parts(folder: Path, processor: str, tokenizer, image_processor) -> None:
    """The layout of before version 5: a file each, which names the processor that they make up."""
    for part, name in [(tokenizer, "tokenizer_config.json"), (image_processor, "preprocessor_config.json")]:
        part.save_pretrained(folder)
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | {"processor_class": processor}))


def save_florence2(folder: Path) -> None:
    learnt = json.loads(pieces(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]).to_str())["model"]
    tokenizer = tf.BartTokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(pair) for pair in learnt["merges"]],
        extra_special_tokens={"image_token": "<image>"},
    )
    tokenizer.add_tokens([f"<loc_{i}>" for i in range(1000)])
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    sizes = {f"{side}_{size}": 2 for side in ("encoder", "decoder") for size in ("layers", "attention_heads")}
    text = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 128}
    vision = {
        "depths": (1, 1, 1, 1),
        "embed_dim": (8, 16, 16, 32),
        "num_heads": (1, 2, 2, 2),
        "num_groups": (1, 2, 2, 2),
    }
    config = tf.Florence2Config(
        image_token_id=tokenizer.image_token_id,
        vision_config=vision | {"window_size": 4, "projection_dim": 32, "drop_path_rate": 0.0},
        text_config=text | sizes | ids | {"model_type": "bart", "vocab_size": len(tokenizer)},
    )
    model = random(tf.Florence2ForConditionalGeneration(config))
    model.generation_config = tf.GenerationConfig(**ids, num_beams=3, no_repeat_ngram_size=3, forced_eos_token_id=2)
    model.save_pretrained(folder)
    image_processor = tf.CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    image_processor.image_seq_length = 5  # 2 x 2 patches and their mean
    parsers = {"phrase_grounding": {"banned_grounding_tokens": ["the image"]}, "pure_text": {}}
    tf.Florence2Processor(image_processor, tokenizer, post_processor_config=parsers).save_pretrained(folder)


def save_chat(folder: Path, family: str) -> None:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<image>", "<global-img>"]
    specials += ["<end_of_utterance>", *(f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2))]
    named = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"}
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=pieces(specials), **named)
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = LAYERS | ids | {"model_type": "llama", "vocab_size": len(tokenizer), "num_key_value_heads": 1}
    config = getattr(tf, f"{family}Config")(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        text_config=text,
        vision_config=VISION,
    )
    model = random(getattr(tf, f"{family}ForConditionalGeneration")(config))
    model.generation_config = tf.GenerationConfig(**ids)
    model.save_pretrained(folder)
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}  # up to 2 x 2 tiles and the whole
    parts = [getattr(tf, f"{family}ImageProcessor")(**sizes), tokenizer]
    if family == "SmolVLM":
        parts.append(tf.SmolVLMVideoProcessor(**sizes))
    getattr(tf, f"{family}Processor")(*parts, image_seq_len=4, chat_template=TEMPLATE).save_pretrained(folder)


SAVE: dict[str, Callable[[Path], None]] = {
    "blip-caption": lambda folder: save_blip(folder, "BlipForConditionalGeneration"),
    "blip-vqa": lambda folder: save_blip(folder, "BlipForQuestionAnswering"),
    "git": save_git,
    "florence2": save_florence2,
    "smolvlm": lambda folder: save_chat(folder, "SmolVLM"),
    "idefics3": lambda folder: save_chat(folder, "Idefics3"),
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a family's model; tests that change it work on a copy."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            SAVE[family](made[family])
        return made[family]

    return make


@pytest.fixture
def copied(checkpoint, tmp_path) -> Path:
    """A copy of BLIP's captioner."""
    return Path(shutil.copytree(checkpoint("blip-caption"), tmp_path / "model"))


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    """Of several shapes, so of several numbers of tiles; the last is the first once more."""
    square, wide, tall = (Image.open(SAMPLES / f"{name}.jpg") for name in ("astronaut", "cat", "coffee"))
    found = [
        square.convert("RGB"),
        wide.convert("RGB").crop((0, 100, 440, 250)),
        tall.convert("RGB").crop((90, 0, 260, 390)),
    ]
    return [*found, found[0]]
