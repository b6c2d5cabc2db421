"""A small base model with a pair and a head, all with random weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from vlm.diffusion.pipeline import TextToImagePipeline
from vlm.diffusion.text import States, TextEncoder
from vlm.files.bundle import Bundle, load_folder, save_bundle
from vlm.image import ImageTransform
from vlm.models.config import DenoiserConfig, PairConfig, TextConfig
from vlm.models.denoiser import Denoiser
from vlm.models.pair import ContrastivePair

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "green", "shoe", "shirt", "for", "women"]
TEXT = TextConfig(vocab_size=len(WORDS), dim=16, layers=1, heads=2, ffn_dim=32, max_positions=32)


def words() -> tokenizers.Tokenizer:
    found = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    found.normalizer = tokenizers.normalizers.Lowercase()
    found.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    found.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return found


@pytest.fixture(scope="session")
def base(tmp_path_factory, small_model) -> Path:
    """The folder of a small base model with a pair."""
    module, tokenizer = small_model(["a red shoe for women", " a green shirt"], 300, 16, 64, 32)
    torch.manual_seed(1)
    pair = ContrastivePair(PairConfig(module.tower.dim, 8, 16, TEXT))
    folder = tmp_path_factory.mktemp("base")
    save_bundle(folder, Bundle(module, tokenizer, ImageTransform(64), pair=pair, pair_tokenizer=words()))
    return folder


@pytest.fixture(scope="session")
def build(base) -> Callable[..., TextToImagePipeline]:
    """`build(states="pair", vae=None)`: a pipeline on the small base; its head draws 16 x 16 pixels or latents."""

    def build(states: States = "pair", vae: torch.nn.Module | None = None) -> TextToImagePipeline:
        text = TextEncoder(load_folder(base, "small", with_pair=True), states)
        channels = 3 if vae is None else 4
        sizes = DenoiserConfig(channels, 16, 4, 32, 2, 2, text.dim, text.pooled_dim)
        torch.manual_seed(2)
        denoiser = Denoiser(sizes)
        for parameter in denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        pipeline = TextToImagePipeline(denoiser.eval(), FlowMatchEulerDiscreteScheduler(shift=1.5), text, vae)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return build


@pytest.fixture(scope="session")
def pipeline(build) -> TextToImagePipeline:
    return build()
