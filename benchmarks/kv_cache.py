"""How much faster beam search is with the key-value cache than with the whole prefix read again at every step.

Both searches run the same code of `vlm.decoding.search` over the same random weights of the bundled model's shape and
must write the same tokens; the second sees the backbone through a wrapper without memory, which still computes the
logits of the last position only. Prints one line a batch size; the status is 1 where tokens differ. The gain grows with
the batch: for one photo, reading the weights and calling the operators cost a step as much as its arithmetic.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from vlm.decoding.config import GenerationConfig
from vlm.decoding.search import generate
from vlm.models.config import BOS, Seq2SeqConfig
from vlm.models.seq2seq import Encoded, Seq2Seq

TINY = Seq2SeqConfig(
    vocab_size=8261,
    encoder_layers=1,
    decoder_layers=4,
    patch_dim=1280,
    max_source_positions=256,
    max_target_positions=256,
    token_bucket_size=64,
    image_bucket_size=16,
    dropout=0.0,
)
GRID = 9  # patches a side


@dataclass
class Prefix:
    """What the search without a cache remembers: the tokens themselves."""

    ids: Tensor
    encoded: Encoded

    def reorder(self, rows: Tensor) -> None:
        self.ids = self.ids[rows]

    def select(self, samples: Tensor, rows: Tensor) -> None:
        self.ids, self.encoded = self.ids[rows], self.encoded.select(samples)


class Uncached:
    """The part of a backbone that the search uses, reading the whole prefix at every step."""

    def __init__(self, backbone: Seq2Seq):
        self.backbone, self.config, self.logits = backbone, backbone.config, backbone.logits

    def start(self, encoded: Encoded, group: int, max_length: int, code_rows: Tensor | None = None) -> Prefix:
        rows = encoded.states.shape[0] * group
        return Prefix(torch.empty(rows, 0, dtype=torch.long, device=encoded.states.device), encoded)

    def step(self, ids: Tensor, prefix: Prefix, code_rows: Tensor | None = None) -> Tensor:
        prefix.ids = torch.cat([prefix.ids, ids], 1)
        return self.backbone.decode(prefix.ids, prefix.encoded, code_rows)[:, -1:]


def random_backbone() -> Seq2Seq:
    torch.manual_seed(0)
    backbone = Seq2Seq(TINY).eval()
    # as initialised, all words are nearly equally likely: rounding could decide between two of them
    backbone.embed.weight.data *= 5
    return backbone


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="photos decoded together")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16, help="length of every caption")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each search, of which the median counts")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; one measures work, not scheduling")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    backbone = random_backbone()
    searches = {"cached": backbone, "uncached": cast(Seq2Seq, Uncached(backbone))}
    config = GenerationConfig(beams=args.beams, max_tokens=args.tokens, min_tokens=args.tokens, no_repeat_ngram=3)
    print(f"beams {args.beams}, {args.tokens} tokens, {args.threads} threads, median of {args.repeats} runs")
    for batch in args.batch:
        patches = torch.randn(batch, GRID, GRID, TINY.patch_dim, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            encoded = backbone.encode(torch.full((batch, 1), BOS), patches)
        tokens = {name: [[h.ids for h in hs] for hs in generate(b, encoded, config)] for name, b in searches.items()}
        if tokens["cached"] != tokens["uncached"]:
            print(f"batch {batch}: the two searches wrote different tokens")
            return 1
        seconds: dict[str, list[float]] = {name: [] for name in searches}
        for _ in range(args.repeats):  # in turns, so that a busy machine slows both
            for name, b in searches.items():
                start = time.perf_counter()
                generate(b, encoded, config)
                seconds[name].append(time.perf_counter() - start)
        cached, uncached = (statistics.median(seconds[name]) for name in searches)
        print(
            f"batch {batch}: cached {cached * 1e3:.0f} ms, uncached {uncached * 1e3:.0f} ms, same tokens, "
            f"ratio {uncached / cached:.2f}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
