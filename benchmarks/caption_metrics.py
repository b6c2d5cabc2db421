"""How much faster our caption figures are than pycocoevalcap's with its Java tokenizer.

Scores captions of the given data as hypotheses, each against the other captions of its photo: tokenization, BLEU-1..4,
ROUGE-L and CIDEr, once by `caption_scores` and once by the official path, whose figures must be the same. Then times
CIDEr-D as self-critical training needs it: five samples each of 32 photos, against all captions of the photo.
"""

import argparse
import json
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.metrics.captions import caption_scores
from eval.metrics.cider import CiderScorer
from eval.metrics.ptb import tokenize

GOAL = 5.0


def read_photos(data: Path) -> Iterator[list[str]]:
    """The captions of each photo of the shards and the `captions.json` files under a folder."""
    for shard in sorted(data.rglob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json") and (file := tar.extractfile(member)):
                    yield json.load(file).get("captions", [])
    for path in sorted(data.rglob("captions.json")):
        for photo in json.loads(path.read_text(encoding="utf-8")):
            yield photo["captions"]


def official_figures(hypotheses: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    """The figures by pycocoevalcap's own path (its `eval.py`, less METEOR and SPICE)."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    targets = tokenizer.tokenize({key: [{"caption": text} for text in texts] for key, texts in references.items()})
    results = tokenizer.tokenize({key: [{"caption": text}] for key, text in hypotheses.items()})
    figures = {f"BLEU-{n + 1}": value for n, value in enumerate(Bleu(4).compute_score(targets, results, verbose=0)[0])}
    figures["ROUGE-L"] = float(Rouge().compute_score(targets, results)[0])
    figures["CIDEr"] = float(Cider().compute_score(targets, results)[0])
    return figures


def time_rewards(photos: Sequence[Sequence[str]], turns: int = 20) -> float:
    """Seconds to score five samples each of 32 photos, the quickest of some turns."""
    scorer = CiderScorer([[tokenize(text) for text in photo] for photo in photos])
    images = [image for image in range(32) for _ in range(5)]
    samples = [tokenize(text) for photo in photos[32:64] for text in photo[:5]]  # another photo's captions
    seconds = []
    for _ in range(turns):
        start = time.perf_counter()
        scorer.scores(images, samples)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with shards (*.tar) and captions.json files")
    parser.add_argument("--captions", type=int, default=40_000, help="hypotheses to score")
    args = parser.parse_args(argv)
    photos = [captions for captions in read_photos(args.data) if len(captions) >= 5]
    places = [(i, k) for i, photo in enumerate(photos) for k in range(len(photo))][: args.captions]
    if len(places) < args.captions or len(photos) < 64:
        parser.error(
            f"--data {args.data} holds {len(places)} captions of {len(photos)} photos; name a folder with more"
        )
    hypotheses = {f"{i}-{k}": photos[i][k] for i, k in places}
    references = {f"{i}-{k}": photos[i][:k] + photos[i][k + 1 :] for i, k in places}

    start = time.perf_counter()
    ours = caption_scores(hypotheses, references).corpus
    our_seconds = time.perf_counter() - start
    start = time.perf_counter()
    official = official_figures(hypotheses, references)
    official_seconds = time.perf_counter() - start
    for name, value in official.items():
        print(f"{name:8s} ours {ours[name]:.6f}  pycocoevalcap {value:.6f}")
        if round(ours[name], 4) != round(value, 4):
            print(f"{name}: the two differ")
            return 1
    ratio = official_seconds / our_seconds
    print(f"{len(places)} captions: ours {our_seconds:.2f} s, pycocoevalcap {official_seconds:.2f} s")
    print(f"ratio {ratio:.1f} (goal {GOAL:g}: {'met' if ratio >= GOAL else 'missed'})")
    print(f"CIDEr-D of 160 samples, as rewards: {1000 * time_rewards(photos):.1f} ms")
    return 0 if ratio >= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
