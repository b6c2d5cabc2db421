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
