"""The whole model: an image tower and the backbone that reads its patches."""

from torch import Tensor, nn

from vlm.models.config import Seq2SeqConfig, TowerConfig
from vlm.models.seq2seq import Seq2Seq
from vlm.models.towers import build_tower


class VisionLanguageModel(nn.Module):
    """One image tower in front of one backbone.

    Raises:
        ValueError: the tower's patches are not as wide as the backbone expects.
    """

    def __init__(self, tower: TowerConfig, backbone: Seq2SeqConfig):
        super().__init__()
        self.tower_config = tower
        self.tower = build_tower(tower)
        if self.tower.dim != backbone.patch_dim:
            raise ValueError(
                f"tower {tower.name!r} makes patches of {self.tower.dim} channels; patch_dim is {backbone.patch_dim}"
            )
        self.backbone = Seq2Seq(backbone)

    def forward(self, images: Tensor, prompt_ids: Tensor, previous_ids: Tensor, stage: int = 0) -> Tensor:
        """Decoder features for training.

        Args:
            images: `float32[photos, 3, height, width]`, or features after the tower's first `stage` stages.
            prompt_ids: `int64[batch, words]`, batch a multiple of photos: the prompts of each photo follow each other.
            previous_ids: `int64[rows, words]`, rows a multiple of batch.
            stage: how many stages of the tower `images` has passed.

        Returns:
            `[rows, words, dim]`; `backbone.logits` turns them into scores.
        """
        encoded = self.backbone.encode(prompt_ids, self.tower.head(images, stage))
        return self.backbone.decode(previous_ids, encoded)
