"""Sequence-to-sequence backbone: image patches and words share one token space.

The architecture is OFA's (Wang et al., 2022, arXiv:2202.03052): a pre-norm encoder-decoder transformer with the extra
norms of NormFormer and head scales, untied position biases and one softmax over words, image codes and locations, so
that public OFA checkpoints run on this class by renaming their tensors.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vlm.models.attention import (
    AbsoluteBias,
    RelativeBias,
    grid_sinusoids,
    image_buckets,
    image_position_ids,
    text_buckets,
)
from vlm.models.config import PAD, Seq2SeqConfig
from vlm.models.layers import DecoderBlock, EncoderBlock, drop_path_rates


@dataclass(frozen=True)
class Encoded:
    """What the decoder reads.

    Attributes:
        states: `[batch, tokens, dim]`, patches first, then words.
        positions: layer-normed position vectors, `[1, tokens, dim]`.
        mask: `bool[batch, tokens]`, True at real tokens; None where all are real.
    """

    states: Tensor
    positions: Tensor
    mask: Tensor | None

    def bias(self) -> Tensor | None:
        """The mask as an additive bias, `float32[batch, 1, 1, tokens]`: 0 at real tokens, -inf at padding."""
        return None if self.mask is None else additive_mask(self.mask)[:, None, None, :]

    def select(self, rows: Tensor) -> "Encoded":
        """Keep the samples `int64[rows]`."""
        return replace(self, states=self.states[rows], mask=None if self.mask is None else self.mask[rows])


@dataclass
class Cache:
    """State of incremental decoding.

    Attributes:
        past: keys and values per layer, `[layers, 2, rows, heads, max_length, head_dim]`, filled up to `length`.
        cross: per layer keys and values of the encoder states, `[batch, heads, tokens, head_dim]` each.
        self_biases: per layer `[rows or 1, heads, max_length, max_length]`, causal mask included.
        cross_bias: `[rows, batch or 1, heads, max_length, tokens]`.
        length: tokens already read.
    """

    past: Tensor
    cross: list[tuple[Tensor, Tensor]]
    self_biases: list[Tensor]
    cross_bias: Tensor
    length: int = 0

    def reorder(self, rows: Tensor) -> None:
        """Make row i a copy of row `rows[i]`, which must belong to the same sample: cross keys stay as they are."""
        filled = self.past[..., : self.length, :]  # only this part is worth copying
        filled.copy_(filled.index_select(2, rows))

    def select(self, samples: Tensor, rows: Tensor) -> None:
        """Keep the samples `int64[samples]` and their rows `int64[rows]`; the rest are finished."""
        if self.cross_bias.shape[0] > 1:
            self.cross_bias = self.cross_bias[rows if self.cross_bias.shape[0] == self.past.shape[2] else samples]
        self.self_biases = [b[rows] if b.shape[0] > 1 else b for b in self.self_biases]
        self.cross = [(k[samples], v[samples]) for k, v in self.cross]
        self.past = self.past[:, :, rows]


def additive_mask(mask: Tensor) -> Tensor:
    """`bool`, True attends, to `float32`: 0 where True, -inf where False."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)


class Stack(nn.Module):
    """What encoder and decoder share: position tables, relative biases per layer, the final norm."""

    def __init__(self, config: Seq2SeqConfig, layers: int, max_positions: int):
        super().__init__()
        self.config = config
        # two rows more than positions: fairseq's tables count from an offset that OFA does not use
        self.text_positions = nn.Embedding(max_positions + 2, config.dim)
        self.image_positions = nn.Embedding(config.image_bucket_size**2 + 1, config.dim)
        self.text_position_norm = nn.LayerNorm(config.dim)
        self.image_position_norm = nn.LayerNorm(config.dim)
        self.self_bias = AbsoluteBias(config.dim, config.heads, config.attn_scale_factor)
        self.relative = nn.ModuleList(
            RelativeBias(config.heads, config.token_bucket_size, config.image_bucket_size) for _ in range(layers)
        )
        self.embed_norm = nn.LayerNorm(config.dim)
        self.norm = nn.LayerNorm(config.dim) if config.pre_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)


class Encoder(Stack):
    def __init__(self, config: Seq2SeqConfig):
        super().__init__(config, config.encoder_layers, config.max_source_positions)
        self.patch_proj = nn.Linear(config.patch_dim, config.dim)
        self.patch_norm = nn.LayerNorm(config.dim)
        self.type_embedding = nn.Embedding(2, config.dim)  # 0 text, 1 image
        rates = drop_path_rates(config.encoder_drop_path, config.encoder_layers)
        self.layers = nn.ModuleList(EncoderBlock(config, rate) for rate in rates)

    def image_position_vectors(self, ids: Tensor, height: int, width: int) -> Tensor:
        """Position embeddings of a patch grid, `[patches, dim]`, resized from a smaller grid where configured."""
        side = self.config.interpolate_from
        if not side or height * width <= side * side:
            return self.image_positions(ids)
        table = self.image_positions(image_position_ids(side, side, self.config.image_bucket_size, ids.device))
        table = table.T.reshape(1, -1, side, side)
        table = nn.functional.interpolate(table, size=(height, width), mode="bilinear", align_corners=False)
        return table.flatten(2).squeeze(0).T

    def forward(self, words: Tensor, mask: Tensor | None, patches: Tensor | None) -> Encoded:
        """Read patches and words as one sequence.

        Args:
            words: word embeddings, `[batch, words, dim]`.
            mask: `bool[batch, patches + words]`, True at real tokens, or None where all are real.
            patches: `[photos, height, width, patch_dim]`, the batch a multiple of the photos; None for text alone.
        """
        device = words.device
        length = words.shape[1]
        positions = self.text_positions.weight[:length]
        vectors = self.text_position_norm(positions)
        if self.config.encoder_entangle:
            words = words + positions
        x = self.dropout(self.embed_norm(words + self.type_embedding.weight[0]))
        buckets = text_buckets(length, self.config.token_bucket_size, device)
        grid_buckets = None
        if patches is not None:
            height, width = patches.shape[1:3]
            ids = image_position_ids(height, width, self.config.image_bucket_size, device)
            grid_positions = self.image_position_vectors(ids, height, width)
            vectors = torch.cat([self.image_position_norm(grid_positions), vectors])
            image = self.patch_proj(patches.flatten(1, 2))
            if self.config.encoder_entangle:
                image = image + grid_positions
            image = self.patch_norm(image + self.type_embedding.weight[1])
            if len(image) != len(words):  # several prompts for each photo
                image = image.repeat_interleave(len(words) // len(image), 0)
            image = self.dropout(image)
            x = torch.cat([image, x], dim=1)  # [batch, patches + words, dim]
            grid_buckets = image_buckets(ids, self.config.image_bucket_size)
        bias = self.self_bias(vectors[None], vectors[None])  # [1, heads, tokens, tokens]
        if mask is not None:
            x = x * mask[..., None]
            bias = bias + additive_mask(mask)[:, None, None, :]
        for layer, relative in zip(self.layers, self.relative, strict=True):
            x = layer(x, self._add_relative(bias, relative, buckets, grid_buckets))
        return Encoded(self.norm(x), vectors[None], mask)

    @staticmethod
    def _add_relative(bias: Tensor, relative: nn.Module, text: Tensor, image: Tensor | None) -> Tensor:
        """Add one layer's relative biases: within words, within patches, none between the two."""
        assert isinstance(relative, RelativeBias)
        words = text.shape[0]
        patches = bias.shape[-1] - words
        both = bias.clone()
        both[..., patches:, patches:] += relative.look_up(relative.text, text)
        if image is not None:
            both[..., :patches, :patches] += relative.look_up(relative.image, image)
        return both


class Decoder(Stack):
    def __init__(self, config: Seq2SeqConfig):
        super().__init__(config, config.decoder_layers, config.max_target_positions)
        self.code_embed_norm = nn.LayerNorm(config.dim)
        self.cross_bias = AbsoluteBias(config.dim, config.heads, config.attn_scale_factor)
        rates = drop_path_rates(config.decoder_drop_path, config.decoder_layers)
        self.layers = nn.ModuleList(DecoderBlock(config, rate) for rate in rates)

    def code_position_ids(self, length: int, device: torch.device) -> Tensor:
        """Position ids of a code sequence: 0 for the start token, then the code grid row by row, `int64[length]`."""
        side = self.config.code_grid
        ids = image_position_ids(side, side, self.config.image_bucket_size, device)
        return torch.cat([ids.new_zeros(1), ids])[:length]

    def positions(self, length: int, code_rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Raw and layer-normed position vectors, each `[rows or 1, length, dim]`."""
        raw = self.text_positions.weight[:length][None]
        normed = self.text_position_norm(raw)
        if code_rows is None:
            return raw, normed
        code = self.image_positions(self.code_position_ids(length, raw.device))[None]
        is_code = code_rows[:, None, None]
        return torch.where(is_code, code, raw), torch.where(is_code, self.image_position_norm(code), normed)

    def biases(self, length: int, encoded: Encoded, code_rows: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """Self attention biases per layer and the cross attention bias, for sequences of `length` tokens.

        Returns:
            per layer `[rows or 1, heads, length, length]` with -inf above the diagonal, and
            `[rows or 1, heads, length, tokens]`.
        """
        device = encoded.states.device
        _, vectors = self.positions(length, code_rows)
        causal = torch.full((length, length), -torch.inf, device=device).triu(1)
        shared = self.self_bias(vectors, vectors) + causal
        buckets = text_buckets(length, self.config.token_bucket_size, device)
        code_buckets = None
        if code_rows is not None:
            code_buckets = image_buckets(self.code_position_ids(length, device), self.config.image_bucket_size)
        biases = []
        for relative in self.relative:
            assert isinstance(relative, RelativeBias)
            bias = relative.look_up(relative.text, buckets)
            if code_rows is not None and code_buckets is not None:
                code_bias = relative.look_up(relative.image, code_buckets)
                bias = torch.where(code_rows[:, None, None, None], code_bias, bias)
            biases.append(shared + bias)
        cross = self.cross_bias(vectors, encoded.positions)
        padding = encoded.bias()
        if padding is not None:
            if cross.shape[0] > padding.shape[0]:
                padding = padding.repeat_interleave(cross.shape[0] // padding.shape[0], 0)
            cross = cross + padding
        return biases, cross

    def embed(self, words: Tensor, start: int, code_rows: Tensor | None) -> Tensor:
        """`[rows, words, dim]` word embeddings, the first of them at position `start`, to the first layer's input."""
        if self.config.decoder_entangle:
            words = words + self.positions(start + words.shape[1], code_rows)[0][:, start:]
        x = self.embed_norm(words)
        if code_rows is not None:
            x = torch.where(code_rows[:, None, None], self.code_embed_norm(words), x)
        return self.dropout(x)


class Seq2Seq(nn.Module):
    """Encoder and decoder over one tied vocabulary of words, image codes and locations.

    Shapes in the methods: `rows` is a multiple of `batch`; the rows of one sample (several captions of one image,
    beams of one search) follow each other and share that sample's encoder states.
    """

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim, padding_idx=PAD)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.apply(self._init)
        # OFA's 0.02, meant for its widths, leaves a narrow model's logits so flat that it takes epochs to raise them
        nn.init.normal_(self.embed.weight, std=config.dim**-0.5)
        nn.init.zeros_(self.embed.weight[PAD])
        # after a norm of 1, untrained attention is as loud as the patches it mixes, and much the same for all of them
        for name, weight in self.encoder.layers.named_parameters():
            if name.endswith("self_attn_out_norm.weight"):
                nn.init.constant_(weight, 0.1)
        if config.encoder_entangle:  # beside patches of about 1.5, small random positions would never be heard
            self.encoder.image_positions.weight.data.copy_(grid_sinusoids(config.image_bucket_size, config.dim))

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def encode(self, prompt_ids: Tensor, patches: Tensor | None = None, has_image: Tensor | None = None) -> Encoded:
        """Read an image and a prompt as one sequence.

        Args:
            prompt_ids: `int64[batch, words]`, padded on the right with 1.
            patches: image features, `[photos, height, width, patch_dim]`, where the batch is a multiple of the photos:
                the prompts of each photo follow each other; None for text alone.
            has_image: `bool[batch]`, False where a row's patches are a dummy to be ignored; None: all are real.

        Raises:
            ValueError: the prompt or the patch grid is larger than the position tables.
        """
        words = prompt_ids.shape[1]
        if words > self.config.max_source_positions:
            raise ValueError(f"prompt of {words} tokens; this model reads at most {self.config.max_source_positions}")
        if patches is not None and max(patches.shape[1:3]) > self.config.image_bucket_size:
            raise ValueError(
                f"patch grid {patches.shape[1]}x{patches.shape[2]}; "
                f"this model reads at most {self.config.image_bucket_size} patches a side"
            )
        mask = prompt_ids != PAD
        if patches is not None:
            image_mask = mask.new_ones(mask.shape[0], patches.shape[1] * patches.shape[2])
            if has_image is not None:
                image_mask = image_mask & has_image[:, None]
            mask = torch.cat([image_mask, mask], dim=1)
        return self.encoder(self.embed(prompt_ids), None if bool(mask.all()) else mask, patches)

    def decode(self, previous_ids: Tensor, encoded: Encoded, code_rows: Tensor | None = None) -> Tensor:
        """Features of every position of a whole sequence (training, scoring).

        Args:
            previous_ids: `int64[rows, words]`, starting with 0, padded on the right with 1.
            encoded: from `encode`, of `batch` samples.
            code_rows: `bool[rows or 1]`, True where a row is a sequence of image codes; None: all rows are text.

        Returns:
            Features after the last norm, `[rows, words, dim]`; `logits` turns them into scores.
        """
        self_biases, cross_bias = self.decoder.biases(previous_ids.shape[1], encoded, code_rows)
        keep = previous_ids != PAD
        padding = None if bool(keep.all()) else additive_mask(keep)[:, None, None, :]
        x = self.decoder.embed(self.embed(previous_ids), 0, code_rows)
        for layer, bias in zip(self.decoder.layers, self_biases, strict=True):
            assert isinstance(layer, DecoderBlock)
            cross = layer.cross_attn.keys_values(encoded.states)
            x = layer(x, bias if padding is None else bias + padding, cross, cross_bias)
        return self.decoder.norm(x)

    def start(self, encoded: Encoded, group: int, max_length: int, code_rows: Tensor | None = None) -> Cache:
        """Prepare incremental decoding of `group` rows a sample, at most `max_length` tokens each."""
        self_biases, cross_bias = self.decoder.biases(max_length, encoded, code_rows)
        sizes = self.config
        shape = (encoded.states.shape[0] * group, sizes.heads, max_length, sizes.dim // sizes.heads)
        past = encoded.states.new_empty(len(self.decoder.layers), 2, *shape)
        cross = []
        for layer in self.decoder.layers:
            assert isinstance(layer, DecoderBlock)
            keys, values = layer.cross_attn.keys_values(encoded.states)
            cross.append((keys.contiguous(), values.contiguous()))  # read at every step
        return Cache(past, cross, self_biases, cross_bias)

    def step(self, ids: Tensor, cache: Cache, code_rows: Tensor | None = None) -> Tensor:
        """Read the next token of every row.

        Args:
            ids: `int64[rows, words]`, the tokens that follow those already in the cache.
            cache: from `start`; extended in place.
            code_rows: as given to `start`.

        Returns:
            Features of the new positions, `[rows, words, dim]`.
        """
        start, end = cache.length, cache.length + ids.shape[1]
        x = self.decoder.embed(self.embed(ids), start, code_rows)
        cross_bias = cache.cross_bias[:, :, start:end]
        for i, layer in enumerate(self.decoder.layers):
            bias = cache.self_biases[i][:, :, start:end, :end]
            x = layer(x, bias, cache.cross[i], cross_bias, cache.past[i], start)
        cache.length = end
        return self.decoder.norm(x)

    def logits(self, features: Tensor, ids: slice | Tensor | None = None) -> Tensor:
        """Scores of the vocabulary, `[..., vocab]`, or of the part `ids` of it (a slice costs nothing)."""
        table = self.embed.weight if ids is None else self.embed.weight[ids]
        return nn.functional.linear(features, table)

    def forward(
        self,
        prompt_ids: Tensor,
        previous_ids: Tensor,
        patches: Tensor | None = None,
        has_image: Tensor | None = None,
        code_rows: Tensor | None = None,
    ) -> Tensor:
        """Logits of every position, `[rows, words, vocab]`; arguments as in `encode` and `decode`."""
        encoded = self.encode(prompt_ids, patches, has_image)
        return self.logits(self.decode(previous_ids, encoded, code_rows))
