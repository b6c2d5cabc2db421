"""Image encoders of the timm package, without a text encoder."""

from collections.abc import Sequence

from torch import Tensor, nn

from vlm.encoders.base import Encoders
from vlm.image import ImageSource
from vlm.models.towers import TimmTower


class TimmEncoders(Encoders):
    """An image encoder of the timm package, without a text encoder."""

    logit_scale = None

    def __init__(self, name: str, model: nn.Module, image_transform):
        super().__init__(name, int(model.num_features), image_transform)  # pyright: ignore[reportArgumentType]
        self.model = model

    def image_vectors(self, pixels: Tensor) -> Tensor:
        return self.model(pixels)

    def patch_embeddings(self, images: Tensor | Sequence[ImageSource]) -> Tensor:
        return TimmTower(self.model)(self.pixels(images)).flatten(1, 2)


def load_timm(name: str, rest: str) -> Encoders:
    import timm
    from timm.data import create_transform, resolve_model_data_config  # pyright: ignore[reportPrivateImportUsage]

    architecture, _, file = rest.partition("/")
    overlay = {"file": file} if file else None
    model = timm.create_model(architecture, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    config = resolve_model_data_config(model)
    return TimmEncoders(name, model, create_transform(**config, is_training=False))
