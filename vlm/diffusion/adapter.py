"""The base's text states in place of a foreign pipeline's text encoder, through a small trained network.

Pipelines such as Stable Diffusion read prompts through a text encoder of their own, which is often most of their weight
and knows one language. An adapter learns to say what that encoder says (a mean squared error, as in the distillation of
text encoders for other languages: AltCLIP, Chen et al., 2022, arXiv:2211.06679), from texts alone: no picture is
drawn. Afterwards the pipeline's own encoder is not needed.
"""

import inspect
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging
from torch import Tensor, nn
from tqdm import tqdm

from vlm.diffusion.text import TextEncoder, TextStates
from vlm.errors import ArgumentError, ModelError, reason
from vlm.files.atomic import write_text
from vlm.files.bundle import load_bundle
from vlm.files.digest import weights_sha256

BASE = "base.json"  # beside the adapter's own files: whose states it reads
HELD_OUT = 20  # every so many-th text measures the adapter and is not learned
WARMUP = 0.05  # share of the steps


class TextAdapter(ModelMixin, ConfigMixin):
    """Text states of a base model to the prompt embeddings of a pipeline.

    One learned query for each token of the pipeline's prompt attends to the others and to the base's states. What a
    token's embedding is on average is no matter of the network: it is kept as it was measured.

    Args:
        text_dim: width of the base's states.
        pooled_dim: length of the base's pooled vector.
        tokens: of the pipeline's prompt embeddings.
        dim: their width.
        pooled: length of the pipeline's pooled embedding; 0: it has none.
        width: of the network, a multiple of 64.
        layers: of the network.
    """

    config_name = "config.json"

    def __init__(
        self,
        text_dim: int,
        pooled_dim: int,
        tokens: int,
        dim: int,
        pooled: int = 0,
        width: int = 256,
        layers: int = 2,
    ):
        super().__init__()
        sizes = {"text_dim": text_dim, "pooled_dim": pooled_dim, "tokens": tokens, "dim": dim, "pooled": pooled}
        self.register_to_config(**sizes, width=width, layers=layers)
        self.queries = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.text_proj = nn.Sequential(nn.LayerNorm(text_dim), nn.Linear(text_dim, width))
        self.pooled_proj = nn.Linear(pooled_dim, width)
        self.blocks = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, max(1, width // 64), 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, dim)
        self.register_buffer("mean", torch.zeros(tokens, dim))
        self.register_buffer("scale", torch.ones(dim))
        self.pooled_out = nn.Linear(width, pooled) if pooled else None
        for layer in filter(None, (self.out, self.pooled_out)):  # at first, all is as on average
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("pooled_mean", torch.zeros(max(1, pooled)))
        self.register_buffer("pooled_scale", torch.ones(max(1, pooled)))

    def forward(self, text: TextStates) -> tuple[Tensor, Tensor | None]:
        """`[batch, tokens, dim]`, and `[batch, pooled]` or None."""
        standard, pooled = self.standardised(text)
        found = self.mean + self.scale * standard
        return found, None if pooled is None else self.pooled_mean + self.pooled_scale * pooled

    def standardised(self, text: TextStates) -> tuple[Tensor, Tensor | None]:
        """As `forward`, with each number less its mean and divided by its deviation."""
        vector = self.pooled_proj(text.pooled)  # [batch, width]
        x = self.queries + vector[:, None]  # [batch, tokens, width]
        states = self.text_proj(text.states)
        for block in self.blocks:
            x = block(x, states, memory_key_padding_mask=~text.mask)
        x = self.norm(x)
        return self.out(x), None if self.pooled_out is None else self.pooled_out(x.mean(1))

    @torch.no_grad()
    def measure(self, embeddings: Tensor, pooled: Tensor | None) -> None:
        """Keep mean and deviation of what the pipeline's encoder says of some texts.

        The deviation is that of a channel over all tokens, so that tokens that say the same of every text, such as the
        first and the padding, count for nothing.
        """
        self.mean.copy_(embeddings.mean(0))
        self.scale.copy_((embeddings - self.mean).square().mean((0, 1)).sqrt().clamp(min=1e-4))
        if pooled is not None:
            self.pooled_mean.copy_(pooled.mean(0))
            self.pooled_scale.copy_(pooled.std(0).clamp(min=1e-4))


class AdaptedPrompts:
    """Prompts for a pipeline, read by a base model through an adapter.

    Args:
        adapter: the network.
        encoder: the base.
    """

    def __init__(self, adapter: TextAdapter, encoder: TextEncoder):
        self.adapter, self.encoder = adapter.eval(), encoder
        sizes = adapter.config
        if (sizes["text_dim"], sizes["pooled_dim"]) != (encoder.dim, encoder.pooled_dim):
            raise ModelError("the adapter reads the states of another base; take the one that it was trained with")

    @classmethod
    def load(cls, folder: str | Path) -> "AdaptedPrompts":
        """Read what `save` wrote.

        Raises:
            ModelError: a file is missing or of another model.
        """
        folder = Path(folder)
        try:
            base = json.loads((folder / BASE).read_text(encoding="utf-8"))
            name, states, digest = str(base["base"]), str(base["states"]), str(base["sha256"])
            adapter = TextAdapter.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
        except Exception as error:  # diffusers raises whatever its parts do
            raise ModelError(f"{str(folder)!r} is not an adapter: {reason(error)}") from None
        bundle = load_bundle(name, with_pair=True)
        if bundle.sha256() != digest:
            raise ModelError(f"{str(folder)!r} was trained with other weights of {name!r}; take those, or train again")
        return cls(adapter, TextEncoder(bundle, states))  # pyright: ignore[reportArgumentType]

    def save(self, folder: str | Path) -> None:
        """Write the adapter, and the name and digest of the base, for `load`."""
        folder = Path(folder)
        self.adapter.save_pretrained(folder)
        bundle = self.encoder.bundle
        base = {"base": bundle.name, "states": self.encoder.states, "sha256": bundle.sha256()}
        write_text(folder / BASE, json.dumps(base, indent=2) + "\n")

    def sha256(self) -> str:
        """Digest of the adapter's weights and those of the base, in hexadecimal."""
        return weights_sha256(nn.ModuleList([self.adapter, self.encoder]))

    @torch.no_grad()
    def arguments(self, pipe: Any, prompt: str, negative_prompt: str = "") -> dict[str, Tensor]:
        """What to give a pipeline of diffusers in place of `prompt` and `negative_prompt`.

        Raises:
            ArgumentError: the pipeline takes no such embeddings, or the prompt is too long.
        """
        known = check_kind(pipe)
        if (pooled := self.adapter.config["pooled"] > 0) != ("pooled_prompt_embeds" in known):
            other = "has no" if pooled else "needs a"
            raise ArgumentError(
                f"the adapter is for another pipeline: a {type(pipe).__name__} {other} pooled embedding; train one "
                "for it with `vlm adapt`"
            )
        network = getattr(pipe, "unet", None) or pipe.transformer
        names = ("cross_attention_dim", "joint_attention_dim")
        wanted = {network.config[name] for name in names if isinstance(network.config.get(name), int)}
        if wanted and self.adapter.config["dim"] not in wanted:
            raise ArgumentError(
                f"the adapter makes embeddings of {self.adapter.config['dim']} numbers, the pipeline reads "
                f"{max(wanted)}; train one for it with `vlm adapt`"
            )
        found: dict[str, Tensor | None] = {}
        for kind, text in (("", prompt), ("negative_", negative_prompt)):
            names = (f"{kind}prompt_embeds", f"{kind}pooled_prompt_embeds")
            found |= zip(names, self.adapter(self.encoder.encode([text])), strict=True)
        like = {"device": pipe._execution_device, "dtype": pipe.dtype}
        return {name: value.to(**like) for name, value in found.items() if value is not None and name in known}


def check_kind(pipe: Any) -> Mapping[str, Any]:
    """The arguments of a pipeline that an adapter can serve.

    Raises:
        ArgumentError: it cannot.
    """
    known = inspect.signature(type(pipe).__call__).parameters
    if "prompt_embeds" not in known or "prompt_attention_mask" in known or not hasattr(pipe, "encode_prompt"):
        raise ArgumentError(
            "adapters serve pipelines of the kind of Stable Diffusion 1 to 3, SDXL and Flux, not a "
            f"{type(pipe).__name__}; choose such a pipeline"
        )
    return known


@torch.no_grad()
def prompt_embeddings(pipe: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    """What a pipeline's own text encoder says, `float32[texts, tokens, dim]`, and pooled `[texts, pooled]` or None."""
    known = check_kind(pipe)
    options: dict[str, Any] = {"prompt": list(texts), "do_classifier_free_guidance": False, "num_images_per_prompt": 1}
    takes = inspect.signature(pipe.encode_prompt).parameters
    options |= {name: None for name in takes if name.startswith("prompt_") and name[7:].isdigit()}
    options["device"] = pipe._execution_device
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would tell of each text that is cut off
    try:
        found = pipe.encode_prompt(**{name: value for name, value in options.items() if name in takes})
    finally:
        logging.set_verbosity(verbosity)
    # with and without guidance, then pooled with and without; Flux has no guidance, and positions in the end
    pooled = None if "pooled_prompt_embeds" not in known else found[1] if len(found) == 3 else found[2]
    return found[0].float(), None if pooled is None else pooled.float()


def train_adapter(
    pipe: Any,
    encoder: TextEncoder,
    texts: Sequence[str],
    *,
    steps: int = 2000,
    batch_size: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> AdaptedPrompts:
    """Train an adapter on texts alone; every twentieth measures it.

    Args:
        pipe: a pipeline of diffusers with its own text encoder.
        encoder: the base.
        texts: captions or prompts, the more the better; too long ones are left out.
        steps: of AdamW, with a linear warm-up and a cosine.
        batch_size: texts of a step.
        lr: peak learning rate.
        seed: of weights and order.
        log: is told how much of the variance of held-out texts the adapter explains, ten times.

    Raises:
        ArgumentError: there are too few texts, or the pipeline is of another kind.
    """
    check_kind(pipe)
    texts = [text for text in dict.fromkeys(texts) if text.strip() and encoder.fits(text)]
    held, learned = texts[::HELD_OUT], [text for number, text in enumerate(texts) if number % HELD_OUT]
    if len(learned) < batch_size:
        raise ArgumentError(f"{len(learned)} texts to learn from are fewer than a batch of {batch_size}; give more")
    device = pipe._execution_device
    torch.manual_seed(seed)
    sample = [prompt_embeddings(pipe, part) for part in _parts([*learned[:512], ""], batch_size)]
    embeddings = torch.cat([found for found, _ in sample])
    pooled = None if sample[0][1] is None else torch.cat([found for _, found in sample if found is not None])
    sizes = encoder.dim, encoder.pooled_dim, *embeddings.shape[1:], 0 if pooled is None else pooled.shape[1]
    adapter = TextAdapter(*sizes).to(device)  # pyright: ignore
    adapter.measure(embeddings, pooled)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, round(WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    batches = _shuffled(learned, batch_size, seed)
    with tqdm(total=steps, unit="step", desc="adapter", file=sys.stderr, disable=None) as bar:
        for step in range(1, steps + 1):
            loss = _error(adapter.train(), encoder, pipe, next(batches))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update()
            if step % max(1, steps // 10) == 0:
                log(f"step {step}: explains {100 * _explained(adapter.eval(), encoder, pipe, held, batch_size):.1f} %")
    return AdaptedPrompts(adapter.eval(), encoder)


def _error(adapter: TextAdapter, encoder: TextEncoder, pipe: Any, texts: Sequence[str]) -> Tensor:
    """Mean squared error of what the adapter says, in units of the pipeline's own deviations."""
    expected, pooled = prompt_embeddings(pipe, texts)
    found, found_pooled = adapter.standardised(encoder.encode(texts))
    error = (found - (expected - adapter.mean) / adapter.scale).square().mean()
    if pooled is not None and found_pooled is not None:
        error = error + (found_pooled - (pooled - adapter.pooled_mean) / adapter.pooled_scale).square().mean()
    return error


@torch.no_grad()
def _explained(adapter: TextAdapter, encoder: TextEncoder, pipe: Any, texts: Sequence[str], batch_size: int) -> float:
    """Share of the variance of token embeddings around each token's mean that the adapter explains."""
    left = total = 0.0
    for part in _parts(texts, batch_size):
        expected, _ = prompt_embeddings(pipe, part)
        found, _ = adapter(encoder.encode(part))
        left += (expected - found).square().sum().item()
        total += (expected - adapter.mean).square().sum().item()
    return 1 - left / max(total, 1e-12)


def _parts(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (texts[start : start + size] for start in range(0, len(texts), size))


def _shuffled(texts: Sequence[str], size: int, seed: int) -> Iterator[list[str]]:
    """Full batches without end, in another order each epoch; one text of every tenth batch is empty, for guidance."""
    rng = random.Random(seed)
    while True:
        for part in _parts(rng.sample(texts, len(texts)), size):
            if len(part) == size:
                yield ["", *part[1:]] if rng.random() < 0.1 else list(part)
