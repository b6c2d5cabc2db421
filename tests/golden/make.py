"""Cut the small goldens of this folder from the large reference data: `python tests/golden/make.py REFERENCE`.

REFERENCE is a folder of numbers that the original OFA code computed; this folder has its layout with fewer numbers:

- `nano/`: the parameters of the original's nano model in steps of 1/4096, which is exact, without its image tower. A
  photo is what the original's tower and projection to the backbone's width make of it, `[batch, height, width, 32]`.
  Of logits every ninth is kept, some cases lose rows of the batch or the last words, and positions that no case
  reaches are zero. The arrays are safetensors in gzip, where the reference has npz.
- `bpe/`: the pieces and merges of GPT-2's vocabulary that the texts below need. Ids are counted anew.
- `data/`: some of the texts and items, with a few pixels each, and the three pictures, which are sine waves.
- `params/`: the tensors of the tiny size, of the first layer and block of each kind.
- `full_recipe/`: the tiny size with weights made by a formula, in fewer digits.
- `nano_golden.json`: some of the generation, losses and rewards.

The script also adds to `captions.json`, which holds captions of our own, the tokens of pycocoevalcap's Java tokenizer.
"""

import gzip
import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save
from tokenizers import pre_tokenizers

from vlm.convert.ofa.tokenizer import load_tokenizer
from vlm.models.attention import image_buckets
from vlm.models.config import EOS, TowerConfig
from vlm.models.towers import build_tower

HERE = Path(__file__).parent
TOWER = "encoder.embed_images."

# rows of the batch and words of the decoder that are kept
CASES: dict[str, tuple[slice, int]] = {
    "caption3": (slice(1, 3), 6),
    "text_only": (slice(1, 2), 6),
    "code": (slice(0, 1), 9),
    "code_mixed": (slice(0, 2), 4),
    "interp_pos": (slice(0, 1), 4),
    "entangled": (slice(0, 1), 5),
    "resids": (slice(0, 1), 5),
    "post_norm": (slice(0, 1), 5),
    "enc_entangled": (slice(0, 1), 5),
    "incremental_text": (slice(1, 3), 7),
    "incremental_code": (slice(0, 1), 9),
}
POSITIONS = {  # rows that some case reads
    "encoder.embed_positions.weight": 12,
    "decoder.embed_positions.weight": 24,
    "encoder.embed_image_positions.weight": 32,
    "decoder.embed_image_positions.weight": 32,
}
GENERATION = [
    "greedy", "beam3_max_len_a", "beam3_unkpen", "beam3_ngram2", "beam5_unnormalized",
    "box_range_zero_shot", "code_range", "code_topk1", "trie_beam5_unnormalized",
    "trie_zero_shot", "prefix_trie", "single_masked",
]  # fmt: skip
LOSSES = ["ls0.1", "trie_conf", "drop_worst0.2", "drop_worst0.2_before"]
ITEMS = {  # how many of each kind
    "caption": 3, "vqa": 3, "refcoco": 2, "snli_ve": 2, "image_gen": 1, "image_classify": 1, "gigaword": 1,
}  # fmt: skip
TEXTS = slice(0, 60, 3)  # of the samples of the tokenizer


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def write(name: str, content: Any) -> None:
    (HERE / name).parent.mkdir(exist_ok=True)
    (HERE / name).write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def write_arrays(name: str, arrays: dict[str, np.ndarray]) -> None:
    data = save({key: np.ascontiguousarray(values) for key, values in arrays.items()})
    (HERE / name).write_bytes(gzip.compress(data, 9, mtime=0))


def rounded(value: Any, digits: int = 6) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if abs(value) < 1e-3 else round(value, digits)
    if isinstance(value, dict):
        return {key: rounded(each, digits) for key, each in value.items()}
    return [rounded(each, digits) for each in value] if isinstance(value, list) else value


def nano(reference: Path) -> None:
    state = dict(np.load(reference / "nano" / "state.npz"))
    tower = build_tower(TowerConfig("ofa_resnet", (2, 1, 1))).eval()
    load_tower(tower, state)
    projection = torch.from_numpy(state["encoder.image_proj.weight"]).double()

    @torch.inference_mode()
    def features(images: np.ndarray) -> np.ndarray:
        return (tower(torch.from_numpy(images)).double() @ projection.T).float().numpy()

    computed = ("_bucket", "_idx", "version", "decoder.embed_tokens.weight", "output_projection.weight")
    corner = [0, *(8 * y + x + 1 for y in range(4) for x in range(4))]  # no photo has more than 4 x 4 patches
    buckets = image_buckets(torch.tensor(corner), 8).unique().numpy()
    kept = {}
    for name, values in state.items():
        if not name.startswith(TOWER) and not name.endswith((*computed, "image_proj.weight")):
            steps = (values * 4096).astype(np.int16)
            assert (steps / np.float32(4096) == values).all(), name
            steps[POSITIONS.get(name, len(steps)) :] = 0
            if "image_rel_pos" in name:
                steps[np.setdiff1d(np.arange(len(steps)), buckets)] = 0
            kept[name] = steps
    write("nano/config.json", read(reference / "nano" / "config.json"))
    write_arrays("nano/state.safetensors.gz", kept)

    found = {}
    for key, values in np.load(reference / "nano" / "cases.npz").items():
        case, name = key.split(".", 1)
        if case in CASES and not name.startswith("mid."):
            rows, words = CASES[case]
            if not name.startswith("param."):
                values = values[rows]
            if name == "in.patch_images":
                values = features(values)
            if name in ("in.prev_output_tokens", "out.decoder_features", "out.logits", "out.step_logits"):
                values = values[:, :words]
            found[key] = values[..., ::9] if name.endswith("logits") else values
        elif case == "tables":
            found[key] = values[:1] if name.startswith("image") and values.ndim else values
    write_arrays("nano/cases.safetensors.gz", found)
    for file in ("gen_inputs", "loss_inputs"):
        inputs = dict(np.load(reference / "nano" / f"{file}.npz"))
        inputs["patch_images"] = features(inputs["patch_images"])
        write_arrays(f"nano/{file}.safetensors.gz", inputs)


def load_tower(tower: torch.nn.Module, state: dict[str, np.ndarray]) -> None:
    from vlm.convert.ofa.checkpoint import rename

    names = {rename(name): torch.from_numpy(v) for name, v in state.items() if name.startswith(TOWER)}
    tower.load_state_dict({name.removeprefix("tower."): v for name, v in names.items() if name})


def nano_golden(reference: Path) -> None:
    whole = read(reference / "nano_golden.json")
    losses = whole["losses"]
    cases = {name: losses["cases"][name] for name in LOSSES}
    scst = losses["scst"]
    for case in (*cases.values(), scst["loss_case"]):  # the projection of our photos is another
        gradients = case["grad_norm"]
        case["grad_norm"] = {name: v for name, v in gradients.items() if "image_proj" not in name and TOWER not in name}
    count = 2 * len(scst["generated"]) // len(scst["references"])
    scst["references"] = scst["references"][:2]
    for name in ("generated", "cider_d", "reward"):
        scst[name] = scst[name][:count]
    words = " ".join(text for texts in scst["references"] for text in texts).split()
    scst["document_frequency"] = {
        gram: n for gram, n in scst["document_frequency"].items() if {*gram.split(" ")} <= {*words, "<eos>"}
    }
    functions = {name: losses["function_level"][name] for name in ("inputs", "plain", "eps0", "mask", "drop_worst")}
    result = {
        "generation": rounded({name: whole["generation"][name] for name in GENERATION}, 5),
        "vqa_all_candidate": rounded(whole["vqa_all_candidate"], 5),
        "losses": {"cases": cases, "function_level": functions, "scst": scst},
        "optim": {"lr_schedule": whole["optim"]["lr_schedule"][:1]},
    }
    for case in result["generation"].values():
        case.pop("note")
    write("nano_golden.json", result)


def full_recipe(reference: Path) -> None:
    figures = read(reference / "full_recipe" / "tiny.json")
    figures |= {name: rounded(figures[name], 5) for name in ("beam5", "beam5_plain", "beam5_box")}
    write("full_recipe/tiny.json", figures)
    write_arrays("full_recipe/tiny.safetensors.gz", dict(np.load(reference / "full_recipe" / "tiny.npz")))


def params(reference: Path) -> None:
    (HERE / "params").mkdir(exist_ok=True)
    others = re.compile(r"\.(layers|(token|image)_rel_pos_table_list|layer[123])\.[1-9]")
    for kind in ("fairseq", "hf"):
        lines = (reference / "params" / f"tiny_{kind}.txt").read_text().splitlines()
        kept = [line for line in lines if not others.search(line)]
        (HERE / "params" / f"tiny_{kind}.txt").write_text("\n".join(kept) + "\n")


def data(reference: Path) -> None:
    whole = read(reference / "data" / "data_golden.json")
    items = []
    for name, count in ITEMS.items():
        items += [item for item in whole["items"] if item["name"] == name and "word0" not in str(item["input"])][:count]
    layout = whole["vocabulary"]
    samples = [{k: v for k, v in sample.items() if k != "bpe"} for sample in whole["tokenizer"][TEXTS]]
    tokenizer = load_tokenizer(reference / "bpe")
    texts = {tokenizer.decode([i for i in ids if i < layout["mask"]]) for ids in id_lists([items, samples])}
    texts |= {f" {text}" for item in items for text in item["input"].get("trie_answers") or ()}
    number = cut_vocabulary(reference / "bpe", texts)
    images = whole["image_transforms"][::5]
    for pixels in (*images, *(item["patch_image"] for item in items if item.get("patch_image"))):
        for name in ("sample", "sample_flat_index"):
            pixels[name] = pixels[name][::4]
    starts = {name: number[layout[name]] for name in ("mask", "code_0", "bin_0")}
    result = {
        "vocabulary": {"size": starts["bin_0"] + 1000, **starts},
        "tokenizer": [{**sample, "ids": [number[i] for i in sample["ids"]]} for sample in samples],
        "no_bpe": [{**sample, "ids": [number[i] for i in sample["ids"]]} for sample in whole["no_bpe"]],
        "normalisation": whole["normalisation"][:6],
        "image_transforms": images,
    }
    ids = ("source", "target", "prev_output_tokens", "decoder_prompt")
    for item in items:
        item |= {name: [number[i] for i in item[name]] for name in ids if name in item}
        if "constraint_mask_allowed_ids" in item:
            rows = item["constraint_mask_allowed_ids"]
            item["constraint_mask_allowed_ids"] = [sorted(number[i] for i in row) for row in rows]
        if item["name"] == "image_gen":  # a picture of 16 codes
            item["target"] = [*item["target"][:16], EOS]
            item["prev_output_tokens"] = item["prev_output_tokens"][:17]
    write("data/data_golden.json", {**result, "items": items})
    for file in (reference / "data").glob("*.png"):
        with Image.open(file) as image:
            image.save(HERE / "data" / file.name, optimize=True)


def id_lists(value: Any) -> list[list[int]]:
    """All lists of ids in a nested value; the token before a gap is not joined with the one after it."""
    if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [ids for each in values for ids in id_lists(each)]


PROMPTS = [
    ' what is the complete text of " "?', " a dog", " the snow", ".", "  what does the region describe? region:",
]  # fmt: skip


def cut_vocabulary(folder: Path, texts: set[str]) -> dict[int, int]:
    """Write the pieces that `texts` and `PROMPTS` need; return new ids by the original's."""
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines[1:] if line]
    rank = {pair: i for i, pair in enumerate(merges)}
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    used: set[tuple[str, ...]] = set()
    for word in {word for text in {*texts, *PROMPTS} for word, _ in split.pre_tokenize_str(text)}:
        pieces = list(word)
        while pairs := [pair for pair in pairwise(pieces) if pair in rank]:
            best = min(pairs, key=rank.__getitem__)
            used.add(best)
            i = 0
            while i < len(pieces) - 1:
                if (pieces[i], pieces[i + 1]) == best:
                    pieces[i : i + 2] = ["".join(best)]
                i += 1
    encoder = read(folder / "encoder.json")
    kept = {*pre_tokenizers.ByteLevel.alphabet(), *("".join(pair) for pair in used)}
    numbers = {str(encoder[piece]) for piece in kept}
    every = [line.split(" ") for line in (folder / "dict.txt").read_text().splitlines()]
    symbols = [symbol for symbol, _ in every if symbol in numbers or symbol.startswith("madeupword")]
    (HERE / "bpe").mkdir(exist_ok=True)
    write("bpe/encoder.json", {piece: n for piece, n in encoder.items() if piece in kept})
    (HERE / "bpe" / "dict.txt").write_text("".join(f"{symbol} 1\n" for symbol in symbols))
    text = "".join(f"{a} {b}\n" for a, b in merges if (a, b) in used)
    (HERE / "bpe" / "vocab.bpe").write_text("#version: 0.2\n" + text, encoding="utf-8")
    new = {symbol: i for i, symbol in enumerate(symbols, 4)}
    number = {i: i for i in range(4)} | {i: new[symbol] for i, (symbol, _) in enumerate(every, 4) if symbol in new}
    moved = 4 + len(every) - (4 + len(symbols))
    return number | {i: i - moved for i in range(4 + len(every), 4 + len(every) + 1 + 8192 + 1000)}


def captions() -> None:
    from pycocoevalcap.tokenizer import ptbtokenizer

    content = read(HERE / "captions.json")
    texts = [text for photo in content["photos"] for text in photo] + content["de"]
    found = ptbtokenizer.PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    content["tokens"] = {text: found[i][0] for i, text in enumerate(texts)}
    (HERE / "captions.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main(reference: Path) -> None:
    assert load_tokenizer(reference / "bpe").vocab_size == 59457
    for cut in (nano, nano_golden, full_recipe, params, data):
        cut(reference)
    captions()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
