"""Sizes of the networks, as frozen dataclasses that `config.json` and `pair.json` hold; and the special ids of text."""

from dataclasses import dataclass, field

# ids of `<s>`, `<pad>`, `</s>` and `<unk>`, which come before the pieces of text in every vocabulary (OFA's layout)
BOS, PAD, EOS, UNK = range(4)
NUM_SPECIALS = 4


@dataclass(frozen=True)
class TowerConfig:
    """An image tower.

    Attributes:
        name: a timm model name, or "ofa_resnet" for the ResNet of OFA's checkpoints.
        blocks: blocks per stage of "ofa_resnet": (3, 4, 6), (3, 4, 23) or (3, 8, 36); unused for timm models.
    """

    name: str = "tf_efficientnet_lite2"
    blocks: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "blocks", tuple(self.blocks))  # JSON knows lists only
        if (self.name == "ofa_resnet") != bool(self.blocks):
            raise ValueError(f"TowerConfig: blocks={self.blocks} with name={self.name!r}; only ofa_resnet takes blocks")


@dataclass(frozen=True)
class Seq2SeqConfig:
    """Sizes and switches of the backbone; the defaults are those of every released OFA size."""

    vocab_size: int
    """Number of token ids; training sets it from the tokenizer."""
    dim: int = 256
    """Width of the hidden states."""
    ffn_dim: int = 1024
    """Width of the feed-forward blocks."""
    heads: int = 4
    """Attention heads in each layer."""
    encoder_layers: int = 4
    """Layers of the encoder."""
    decoder_layers: int = 4
    """Layers of the decoder."""
    patch_dim: int = 1024
    """Width of the image tower's patch features."""
    max_source_positions: int = 1024
    """Longest prompt, in tokens."""
    max_target_positions: int = 1024
    """Longest output, in tokens."""
    token_bucket_size: int = 256
    """Number of buckets for relative positions of text tokens."""
    image_bucket_size: int = 42
    """Largest side of a patch grid."""
    code_grid: int = 16
    """Side of the grid of image codes that the decoder generates."""
    attn_scale_factor: float = 2.0
    """Scales the attention logits of content by 1 / sqrt(factor * head_dim)."""
    scale_attn: bool = True
    """Layer norm after each attention."""
    scale_fc: bool = True
    """Layer norm inside the feed-forward block."""
    scale_heads: bool = True
    """Learn a scale for each attention head."""
    scale_resids: bool = False
    """Learn a scale for each residual connection of the feed-forward blocks."""
    pre_norm: bool = True
    """Layer norm before each block, instead of after it."""
    encoder_entangle: bool = False
    """Also add position embeddings to the encoder's input."""
    decoder_entangle: bool = False
    """Also add position embeddings to the decoder's input."""
    interpolate_from: int = 0
    """Grid side whose position embeddings are resized for larger grids; 0: never."""
    dropout: float = 0.1
    """Dropout of the hidden states; a phase of training sets its own."""
    attention_dropout: float = 0.0
    """Dropout of the attention weights."""
    encoder_drop_path: float = 0.0
    """Largest probability of skipping a block of the encoder in training; a phase sets its own."""
    decoder_drop_path: float = 0.0
    """Largest probability of skipping a block of the decoder in training; a phase sets its own."""

    def __post_init__(self):
        if self.dim % self.heads:
            raise ValueError(f"Seq2SeqConfig: dim={self.dim} is not a multiple of heads={self.heads}; change one")
        if self.code_grid > self.image_bucket_size:
            raise ValueError(
                f"Seq2SeqConfig: code_grid={self.code_grid} is larger than image_bucket_size={self.image_bucket_size}"
            )


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a BERT encoder; the defaults are those of all-MiniLM-L6-v2."""

    vocab_size: int = 30522
    """Number of token ids; training sets it from the tokenizer."""
    dim: int = 384
    """Width of the hidden states."""
    layers: int = 6
    """Layers of the text encoder."""
    heads: int = 12
    """Attention heads in each layer."""
    ffn_dim: int = 1536
    """Width of the feed-forward blocks."""
    max_positions: int = 512
    """Longest text, in tokens."""

    def __post_init__(self):
        if self.dim % self.heads:
            raise ValueError(f"TextConfig: dim={self.dim} is not a multiple of heads={self.heads}; change one of them")


@dataclass(frozen=True)
class PairConfig:
    """Sizes of the pair apart from the image tower."""

    patch_dim: int
    """Width of the image tower's patch features."""
    dim: int = 256
    """Width of the common space of photos and texts."""
    width: int = 1024
    """Width of the hidden layer of the image head."""
    text: TextConfig = field(default_factory=TextConfig)
    """Sizes of the text encoder."""

    def __post_init__(self):
        if isinstance(self.text, dict):  # JSON knows no dataclasses
            object.__setattr__(self, "text", TextConfig(**self.text))


@dataclass(frozen=True)
class DenoiserConfig:
    """Sizes of the transformer that draws; pixels or latents of an autoencoder, both as channels on a grid."""

    channels: int = 3
    """Channels of the picture: 3 for pixels, or those of the autoencoder's latents."""
    size: int = 64
    """Side of the pictures that are drawn by default, in pixels or latents; training sets it to its last phase's."""
    patch_size: int = 4
    """Side of a patch, in pixels or latents."""
    dim: int = 256
    """Width of the hidden states."""
    heads: int = 4
    """Attention heads in each layer."""
    layers: int = 8
    """Number of transformer layers."""
    text_dim: int = 384
    """Width of the text states that are attended to."""
    pooled_dim: int = 256
    """Length of the text embedding that modulates the norms."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"DenoiserConfig: {name}={value!r} is not a whole number above 0")
        if self.dim % (4 * self.heads):
            raise ValueError(
                f"DenoiserConfig: dim={self.dim} is not a multiple of 4 * heads = {4 * self.heads}, which rotary "
                "positions of rows and columns need; change one of them"
            )
        if self.size % self.patch_size:
            raise ValueError(
                f"DenoiserConfig: size={self.size} is not a multiple of patch_size={self.patch_size}; change one"
            )
