"""Our encoder pairs in clip-benchmark (LAION): zero-shot classification and retrieval on its data sets.

Once `register` was called, its command line knows `--model_type vlm --model vlm --pretrained NAME`, where NAME is what
`eval.models.load` takes. The harness passes batches of tensors and tokenized texts around; here a photo becomes a
tensor by the model's own `prepare`, and a text stays a string until the model reads it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eval import models
from vlm.errors import ArgumentError, ModelError

try:
    import clip_benchmark  # noqa: F401  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ArgumentError(f"clip-benchmark cannot be imported ({error}); pip install clip-benchmark") from None

NAME = "vlm"  # of the model type


class Texts(list[str]):
    """What the harness takes for a batch of token ids: it may be moved to a device."""

    def to(self, device: str | torch.device) -> "Texts":
        return self


class Pair(nn.Module):
    """An `Embedder` as the harness calls its models.

    Args:
        model: one whose `prepare` makes a tensor of one size of any photo.
        device: of the features.
    """

    def __init__(self, model: Any, device: str | torch.device):
        super().__init__()
        self.model, self.device = model, device

    def transform(self, image: Any) -> Tensor:
        """One photo as the data loader stacks it.

        Raises:
            ModelError: photos of this model do not form batches.
        """
        prepared = self.model.prepare(image)
        if not isinstance(prepared, Tensor):
            raise ModelError(
                f"model {self.model.name!r} prepares photos as {type(prepared).__name__}; clip-benchmark needs tensors"
            )
        return prepared

    def encode_image(self, images: Tensor) -> Tensor:
        """`[batch, ...]` of `transform` to `[batch, dim]`."""
        return torch.as_tensor(self.model.encode_image(list(images)), device=self.device)

    def encode_text(self, texts: Texts) -> Tensor:
        """`[texts, dim]`."""
        return torch.as_tensor(self.model.encode_text(texts), device=self.device)


def load(
    model_name: str, pretrained: str, cache_dir: str | None = None, device: str | torch.device = "cpu"
) -> tuple[Pair, Any, Any]:
    """Load a model for clip-benchmark, as its `load_clip` calls the loader of a model type.

    Args:
        model_name: `vlm`; it stands in the harness's results beside `pretrained`.
        pretrained: what `eval.models.load` takes.
        cache_dir: ignored; the Hugging Face hub's own settings hold.
        device: where it runs.

    Returns:
        The model, the transform of a photo, and the tokenizer.

    Raises:
        ArgumentError: another `model_name`, or the model embeds no photos and texts.
        ModelError: there is no such model.
    """
    if model_name != NAME:  # the harness's default would be written into the results
        raise ArgumentError(
            f"--model is {model_name!r}; with --model_type {NAME}, give --model {NAME} --pretrained NAME"
        )
    pair = Pair(models.load(pretrained, "embed", str(device)), device)
    return pair, pair.transform, tokenize


def tokenize(texts: Sequence[str]) -> Texts:
    """The texts themselves; the model's own tokenizer comes with its `encode_text`."""
    return Texts(texts)


def register() -> None:
    """Add the model type to the harness."""
    from clip_benchmark.models import MODEL_TYPES, TYPE2FUNC  # pyright: ignore[reportMissingImports]

    TYPE2FUNC[NAME] = load
    if NAME not in MODEL_TYPES:
        MODEL_TYPES.append(NAME)


def run() -> None:
    """Run the harness's command line on `sys.argv`."""
    from clip_benchmark.cli import main  # pyright: ignore[reportMissingImports]

    register()
    main()
