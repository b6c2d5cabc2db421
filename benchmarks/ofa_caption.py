"""A caption by a model of OFA-base's size, against the same weights run the way the original runs them.

The original (fairseq's generator around OFA's decoder) gives its decoder the whole prefix at every step: position
vectors and biases of all of it are computed again, although only the last row is used; the encoder's output is repeated
for every beam, its keys and values are projected for every beam, the keys and values of earlier words are joined anew
and copied at every reordering, and attention is written out in single operations. Both run the search of
`vlm.decoding.search` over the same random weights and must write the same tokens in float32; the weights are read from
no file, so the words mean nothing.

Prints where the time goes, and beside it what the machine allows: the products of the parts at the rate of one large
matrix product, and the weights of a step at the rate at which memory is read.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vlm.convert.ofa.config import BLOCKS
from vlm.decoding.config import GenerationConfig, Hypothesis
from vlm.decoding.search import generate
from vlm.models import attention
from vlm.models.config import Seq2SeqConfig, TowerConfig
from vlm.models.layers import DecoderBlock
from vlm.models.seq2seq import Encoded, Seq2Seq
from vlm.models.vision_language import VisionLanguageModel

BASE = Seq2SeqConfig(
    vocab_size=59457, dim=768, ffn_dim=3072, heads=12, encoder_layers=6, decoder_layers=6, patch_dim=1024, dropout=0.0
)
TOWER = TowerConfig("ofa_resnet", BLOCKS["resnet101"])
SIDE, PROMPT, TOKENS = 480, 8, 16


@dataclass
class Prefix:
    """What the original's decoder remembers: the words, and keys and values of each layer, one row a beam."""

    ids: Tensor
    encoded: Encoded
    past: list[tuple[Tensor, Tensor]]
    cross: list[tuple[Tensor, Tensor]]

    def reorder(self, rows: Tensor) -> None:
        self.ids = self.ids[rows]
        self.past = [(keys[rows], values[rows]) for keys, values in self.past]

    def select(self, samples: Tensor, rows: Tensor) -> None:
        self.reorder(rows)
        self.cross = [(keys[rows], values[rows]) for keys, values in self.cross]
        self.encoded = self.encoded.select(rows)


class Original:
    """The part of a backbone that the search uses, with the incremental state of the original."""

    def __init__(self, backbone: Seq2Seq):
        self.backbone, self.config, self.logits = backbone, backbone.config, backbone.logits

    def start(self, encoded: Encoded, group: int, max_length: int, code_rows: Tensor | None = None) -> Prefix:
        rows = torch.arange(encoded.states.shape[0]).repeat_interleave(group)
        return Prefix(torch.empty(len(rows), 0, dtype=torch.long), encoded.select(rows), [], [])

    def step(self, ids: Tensor, prefix: Prefix, code_rows: Tensor | None = None) -> Tensor:
        prefix.ids = torch.cat([prefix.ids, ids], 1)
        decoder = self.backbone.decoder
        self_biases, cross_bias = decoder.biases(prefix.ids.shape[1], prefix.encoded, None)
        x = decoder.embed(self.backbone.embed(ids), prefix.ids.shape[1] - 1, None)
        for i, layer in enumerate(decoder.layers):
            assert isinstance(layer, DecoderBlock)
            if i == len(prefix.cross):
                prefix.cross.append(layer.cross_attn.keys_values(prefix.encoded.states))
            y = layer.enter(x, layer.self_attn_norm)
            now = layer.self_attn.keys_values(y)
            if i < len(prefix.past):
                now = torch.cat([prefix.past[i][0], now[0]], 2), torch.cat([prefix.past[i][1], now[1]], 2)
                prefix.past[i] = now
            else:
                prefix.past.append(now)
            y = layer.self_attn_out_norm(layer.self_attn(y, *now, self_biases[i][:, :, -1:]))
            x = layer.leave(x, y, layer.self_attn_norm)
            y = layer.cross_attn(layer.enter(x, layer.cross_attn_norm), *prefix.cross[i], cross_bias[:, :, -1:])
            x = layer.leave(x, layer.cross_attn_out_norm(y), layer.cross_attn_norm)
            x = layer.feed_forward(x)
        return decoder.norm(x)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention in single operations, whose weights are written down."""

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
        logits = q @ k.transpose(-1, -2)
        return (logits if bias is None else logits + bias).float().softmax(-1).to(v.dtype) @ v

    fused = attention.attend
    attention.attend = attend
    try:
        yield
    finally:
        attention.attend = fused


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="photos captioned together")
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, in turns, of which the median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = VisionLanguageModel(TOWER, BASE).eval()
    # as initialised, all words are nearly equally likely: rounding could decide between two of them
    model.backbone.embed.weight.data *= 5
    config = GenerationConfig(beams=args.beams, max_tokens=TOKENS, min_tokens=TOKENS, no_repeat_ngram=3)
    print(
        f"OFA-base's shape, {SIDE}x{SIDE} pixels, {PROMPT} words of prompt, beams {args.beams}, {TOKENS} tokens, "
        f"{args.threads} threads, median of {args.repeats} runs"
    )
    status = 0
    for precision in args.precision:
        dtype = getattr(torch, precision)
        model.to(dtype)
        for batch in args.batch:
            status |= compare(model, batch, dtype, config, args.repeats)
    return status


@torch.inference_mode()
def compare(model: VisionLanguageModel, batch: int, dtype: torch.dtype, config: GenerationConfig, repeats: int) -> int:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, SIDE, SIDE, generator=generator).to(dtype)
    prompts = torch.randint(4, 50000, (batch, PROMPT), generator=generator)
    backbone = model.backbone
    original = cast(Seq2Seq, Original(backbone))

    def tower() -> Tensor:
        return model.tower(images)

    patches = tower()
    encoded = backbone.encode(prompts, patches)

    def caption(decoder: Seq2Seq) -> list[list[Hypothesis]]:
        return generate(decoder, backbone.encode(prompts, tower()), config)

    def slow(run: Callable[[], object]) -> Callable[[], object]:
        def plain() -> object:
            with plain_attention():
                return run()

        return plain

    parts: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {  # ours, the original's
        "tower": (tower, tower),
        "encoder": (lambda: backbone.encode(prompts, patches), slow(lambda: backbone.encode(prompts, patches))),
        "decoding": (lambda: generate(backbone, encoded, config), slow(lambda: generate(original, encoded, config))),
        "whole": (lambda: caption(backbone), slow(lambda: caption(original))),
    }
    ours = caption(backbone)
    with plain_attention():
        theirs = caption(original)
    same = [[h.ids for h in hs] for hs in ours] == [[h.ids for h in hs] for hs in theirs]
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in parts}
    for _ in range(repeats):  # in turns, so that a busy machine slows both
        for name, runs in parts.items():
            for run, found in zip(runs, seconds[name], strict=True):
                found.append(timed(run))
    precision = str(dtype).removeprefix("torch.")
    print(f"\n{precision}, batch {batch}: {'same' if same else 'other'} tokens")
    limits = bounds(model, batch, dtype, config)
    print(f"  {'part':<10} {'ours':>9} {'original':>9} {'ratio':>6}   limit of this machine")
    for name, (fast, reference) in seconds.items():
        a, b = statistics.median(fast), statistics.median(reference)
        print(f"  {name:<10} {a * 1e3:6.0f} ms {b * 1e3:6.0f} ms {b / a:6.2f}   {limits[name]}")
    return int(dtype == torch.float32 and not same)


def bounds(model: VisionLanguageModel, batch: int, dtype: torch.dtype, config: GenerationConfig) -> dict[str, str]:
    """Of each part the shorter time that arithmetic or memory would take at this machine's best rates."""
    a = torch.randn(2048, 2048, dtype=dtype)
    rate = 2 * 2048**3 / min(timed(lambda: a @ a) for _ in range(5))  # operations a second
    weights = model.backbone.embed.weight
    bandwidth = weights.nbytes / min(timed(lambda: weights.view(torch.int16).max()) for _ in range(5))  # bytes a second
    counts = []
    with torch.inference_mode(False), torch.enable_grad():  # which the counter needs
        images = torch.zeros(batch, 3, SIDE, SIDE, dtype=dtype)
        for part in (model.tower, lambda patches: model.backbone.encode(torch.full((batch, PROMPT), 4), patches)):
            with FlopCounterMode(display=False) as counter:
                images = part(images)
            counts.append(counter.get_total_flops() / rate)
    tower, encoder = counts
    step = [*model.backbone.decoder.layers.parameters(), weights]
    steps = TOKENS + 1
    decoding = 2 * steps * batch * config.beams * sum(p.numel() for p in step) / rate
    read = steps * sum(p.nbytes for p in step) / bandwidth
    told = f"{rate / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.0f} GB/s"
    return {
        "tower": f"{tower * 1e3:.0f} ms of products",
        "encoder": f"{encoder * 1e3:.0f} ms of products",
        "decoding": f"{decoding * 1e3:.0f} ms of products, {read * 1e3:.0f} ms to read the weights {steps} times",
        "whole": f"{(tower + encoder + max(decoding, read)) * 1e3:.0f} ms ({told})",
    }


if __name__ == "__main__":
    raise SystemExit(main())
