"""Pictures from image codes: the decoding half of a VQGAN (Esser et al., 2021, arXiv:2012.09841)."""

import torch
from PIL import Image
from torch import Tensor, nn

from vlm.errors import ArgumentError


class VQDecoder(nn.Module):
    """Image codes to pixels.

    Attributes:
        codebook: a vector for each code.
        pixels: side of the square that a code stands for.
    """

    def __init__(self, codebook: nn.Embedding, post_quant_conv: nn.Conv2d, decoder: nn.Module):
        super().__init__()
        self.codebook, self.post_quant_conv, self.decoder = codebook, post_quant_conv, decoder
        self.pixels = 2 ** sum("upsamplers.0.conv.weight" in name for name, _ in decoder.named_parameters())

    def forward(self, codes: Tensor) -> Tensor:
        """`int64[batch, height, width]` to `float32[batch, 3, pixels * height, pixels * width]`, -1 black, 1 white."""
        vectors = self.codebook(codes).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(vectors))

    @torch.inference_mode()
    def pictures(self, codes: Tensor) -> list[Image.Image]:
        """Decode `int64[batch, height, width]`, one at a time.

        Raises:
            ArgumentError: a code has no vector.
        """
        if codes.numel() and not 0 <= codes.min() <= codes.max() < self.codebook.num_embeddings:
            raise ArgumentError(
                f"the codes go up to {int(codes.max())}, this VQGAN knows {self.codebook.num_embeddings}; "
                "name the one that the model was trained with"
            )
        found = []
        for grid in codes.to(self.codebook.weight.device):
            pixels = ((self(grid[None])[0].clamp(-1, 1) + 1) * 127.5).to(torch.uint8)
            found.append(Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()))
        return found
