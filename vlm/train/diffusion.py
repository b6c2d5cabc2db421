"""Training of the denoiser: noisy pictures and their texts to the pictures without noise."""

import copy
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from vlm.data.augment import View, may_flip
from vlm.data.features import KeptFeatures
from vlm.data.shards import Sample
from vlm.diffusion.flow import add_noise, alignment_loss, draw_shares, velocity_loss
from vlm.diffusion.inputs import generators, to_output
from vlm.diffusion.load import load_head, save_head
from vlm.diffusion.pipeline import TextToImagePipeline
from vlm.diffusion.prior import fit_prior
from vlm.diffusion.text import TextEncoder
from vlm.errors import ArgumentError
from vlm.files.atomic import replacing
from vlm.files.bundle import Bundle
from vlm.models.denoiser import Denoiser
from vlm.tasks.caption import Caption
from vlm.train.config import Phase, TrainConfig
from vlm.train.kept import ALIGN_DIM, ALIGN_SIZE, keep_features, keep_pictures, keep_texts, keep_vectors
from vlm.train.loop import Trainer
from vlm.train.plan import Figures, Step
from vlm.train.settings import Diffusion

VAL_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of noise, at which the loss is measured
VAL_PHOTOS = 128  # of each source
SHEET, SHEET_STEPS, SHEET_GUIDANCE = 12, 20, 4.0  # pictures of a sample sheet, and how they are drawn
SHIFT = 1.5  # of the scheduler that is saved: more of the steps at much noise


class Text(NamedTuple):
    """What a step reads for one photo.

    Attributes:
        number: of the text among all.
        mirrored: whether the picture is mirrored.
        by_photo: whether the photo's vector stands in place of the text's.
    """

    number: int
    mirrored: bool
    by_photo: bool = False


class _Networks(nn.Module):
    """The denoiser, and the projection of its inner layer that only training needs."""

    def __init__(self, denoiser: Denoiser, aligned: bool):
        super().__init__()
        self.denoiser = denoiser
        dim = denoiser.sizes.dim
        self.align = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, ALIGN_DIM)) if aligned else None

    def forward(
        self, noisy: Tensor, share: Tensor, states: Tensor, pooled: Tensor, mask: Tensor, layer: int
    ) -> tuple[Tensor, Tensor | None]:
        """The clean pictures, and, with a layer above 0, its patches for the alignment, `[batch, patches, dim]`."""
        clean, inner = self.denoiser.predict(noisy, share, states, pooled, mask, layer)
        return clean, None if inner is None or self.align is None else self.align(inner)


class DiffusionTrainer(Trainer):
    """Trains the denoiser on the pair's or the backbone's text states; the base model stays as it is.

    Args:
        config: the run.
        bundle: the base model with its pair.
        train: photos to learn from.
        val: photos to validate on.
        out: folder for checkpoint, kept pictures and texts, logs, sample sheets and finished models.
        checkpoint_minutes: time between checkpoints.

    Raises:
        ModelError: the base has no pair, or no head to go on from.
    """

    def __init__(
        self,
        config: TrainConfig,
        bundle: Bundle,
        train: Sequence[Sample],
        val: Sequence[Sample],
        out: Path,
        checkpoint_minutes: float = 5.0,
    ):
        self.pipeline, config = make_head(config, bundle)
        denoiser = self.pipeline.denoiser
        aligned = any(_objective(phase).align for phase in config.phases)
        super().__init__(config, _Networks(denoiser, aligned), bundle.module.tower, train, val, out, checkpoint_minutes)
        self.bundle, self.denoiser = bundle, denoiser
        self.pipeline.text_encoder.to(self.device)  # pyright: ignore[reportCallIssue]
        self.pipeline.set_progress_bar_config(disable=True)
        self.phase = config.phases[0]
        samples = [*train, *val]
        self.prompts = [prompts_of(sample, self.pipeline.text_encoder) for sample in samples]
        texts = dict.fromkeys(["", *(text for short, long in self.prompts for text in (*short, long))])
        self.numbers = {text: number for number, text in enumerate(texts)}
        size = max(_objective(phase).size for phase in config.phases)
        tower = bundle.module.eval().tower
        with self.accelerator.main_process_first():
            self.pictures = keep_pictures(out / f"pictures-{size}", samples, size, self.skipped)
            self.texts_kept = keep_texts(out / "texts", list(texts), self.pipeline.text_encoder)
            self.features = None
            if aligned:
                aligned = [phase for phase in config.phases if _objective(phase).align]
                rows = [row for row, sample in enumerate(train) if any(_reads(phase, sample) for phase in aligned)]
                tower.to(self.device)
                transform = replace(bundle.transform, size=ALIGN_SIZE)
                self.features = keep_features(out / "align", train, rows, tower, transform, self.device)
            self.vectors = None
            if any(_objective(phase).photo_vectors for phase in config.phases):
                self.vectors = keep_vectors(out / "vectors", samples, self.pipeline.text_encoder.encoders)
        bad = {sample.key for sample in samples} & set(self.skipped.keys)
        self.bad = {row for row, sample in enumerate(samples) if sample.key in bad}
        if self.vectors is not None:
            texts, photos = self._pairs(range(len(train)), self.vectors)
            self.pipeline.register_modules(prior=fit_prior(texts, photos))

    def learners(self, phase: Phase) -> list[tuple[nn.Module, float]]:
        return [(self.module, phase.lr)]

    def usable(self, photo: int, task: str) -> bool:
        return photo not in self.bad and bool(self.prompts[photo][0])

    def prepare(self, phase: Phase) -> None:
        self.phase = phase

    def texts(self, photo: int, task: str, phase: Phase, rng: random.Random, view: View) -> list[Text]:
        objective, (short, long) = _objective(phase), self.prompts[photo]
        kind = rng.random() - objective.no_text
        by_photo = 0 <= kind < objective.photo_vectors
        text = long if rng.random() < objective.long_texts else rng.choice(short)
        if kind < 0 or (by_photo and kind < objective.photo_vectors / 2):
            text = ""
        return [Text(self.numbers[text], view.mirrored, by_photo)]

    def _pairs(self, rows: Iterable[int], vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of all single texts of photos, and of their photos, `float32[texts, dim]` each."""
        usable = [row for row in rows if self.usable(row, Caption.name)]
        pairs = [(self.numbers[text], row) for row in usable for text in self.prompts[row][0]]
        texts, photos = (list(part) for part in zip(*pairs, strict=True))
        return self.texts_kept.pooled[texts], np.asarray(vectors[photos], np.float32)

    def _look(
        self, photo: int, seed: str, rng: random.Random, phase: Phase, features: KeptFeatures | None
    ) -> tuple[Tensor, View]:
        """A kept picture, `uint8[3, size, size]`."""
        sample = self.train_samples[photo]
        mirrored = not sample.intact and rng.random() < self.config.augmentation.flip and may_flip(sample.texts())
        return torch.from_numpy(np.array(self.pictures[photo])), View(mirrored=mirrored)

    def loss(self, wrapped: nn.Module, step: Step) -> tuple[Tensor, dict[str, float]]:
        objective, texts = _objective(step.phase), step.texts
        mirrored = torch.tensor([text.mirrored for text in texts], device=self.device)
        clean = prepare_pictures(step.images, objective.size)
        clean = torch.where(mirrored[:, None, None, None], clean.flip(-1), clean)
        share = draw_shares(len(texts), objective.noise_mean, objective.noise_std, step.generator).to(self.device)
        noise = torch.randn(clean.shape, generator=step.generator).to(self.device)
        found = self.texts_kept.read([text.number for text in texts], self.device)
        pooled = found.pooled
        if self.vectors is not None:
            by_photo = torch.tensor([text.by_photo for text in texts], device=self.device)
            vectors = torch.from_numpy(np.asarray(self.vectors[step.photos], np.float32)).to(self.device)
            pooled = torch.where(by_photo[:, None], vectors, pooled)
        layer = objective.align_layer if objective.align and step.done < objective.align_until else 0
        noisy = add_noise(clean, noise, share)
        with self.accelerator.autocast():
            predicted, projected = wrapped(noisy, share, found.states, pooled, found.mask, layer)
        flow = velocity_loss(predicted, clean, share).mean()
        if projected is None or self.features is None:
            return flow, {"flow": flow.item()}
        features = torch.from_numpy(np.array(self.features[step.photos])).float().to(self.device)
        features = torch.where(mirrored[:, None, None, None], features.flip(-1), features)
        side = round(projected.shape[1] ** 0.5)
        features = nn.functional.interpolate(features, (side, side), mode="bilinear").flatten(2).transpose(1, 2)
        align = alignment_loss(projected, features)
        return flow + objective.align * align, {"flow": flow.item(), "align": align.item()}

    def validate(self, parts) -> Figures:
        raise AssertionError("the denoiser is measured on kept pictures")

    def _measure(
        self, phase: Phase, epoch: int, step: int, features: KeptFeatures | None, writer
    ) -> tuple[Figures, Counter[str]]:
        """The loss at fixed noise, by source, and a sheet of pictures."""
        rows: dict[str, list[int]] = {}
        for number, sample in enumerate(self.val_samples):
            row = len(self.train_samples) + number
            if self.usable(row, Caption.name) and _reads(phase, sample):
                rows.setdefault(sample.source, []).append(row)
        found: Figures = {}
        for source, own in rows.items():
            losses = self._losses(phase, own[:VAL_PHOTOS])
            figures = {f"loss_{share}": loss for share, loss in zip(VAL_SHARES, losses, strict=True)}
            if self.vectors is not None and self.pipeline.prior is not None:
                texts, photos = self._pairs(own, self.vectors)
                with torch.no_grad():
                    expected = self.pipeline.prior(torch.from_numpy(texts).to(self.device)).cpu().numpy()
                figures["cosine_text"] = float((texts * photos).sum(1).mean())
                figures["cosine_prior"] = float((expected * photos).sum(1).mean())
            found[source, ""] = ({"loss": sum(losses) / len(losses), **figures}, "")
        chosen = interleave(list(rows.values()), SHEET)
        if chosen:
            sheet = self._sheet(phase, chosen)
            writer.add_image(f"{phase.name}/samples", sheet, step)
            self._save_sheet(sheet, f"{phase.name}-{epoch + 1}.png")
        return found, Counter({source: len(own[:VAL_PHOTOS]) for source, own in rows.items()})

    def _losses(self, phase: Phase, rows: Sequence[int]) -> list[float]:
        """The mean loss of kept pictures with their first texts at each of `VAL_SHARES`; the noise is fixed."""
        sums = np.zeros(len(VAL_SHARES))
        for start in range(0, len(rows), 32):
            part = rows[start : start + 32]
            pictures = torch.from_numpy(np.array(self.pictures[part])).to(self.device)
            clean = prepare_pictures(pictures, _objective(phase).size)
            texts = self.texts_kept.read([self.numbers[self.prompts[row][0][0]] for row in part], self.device)
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(start)).to(self.device)
            for place, value in enumerate(VAL_SHARES):
                share = torch.full((len(part),), value, device=self.device)
                noisy = add_noise(clean, noise, share)
                with self.accelerator.autocast():
                    predicted, _ = self.module(noisy, share, texts.states, texts.pooled, texts.mask, 0)
                sums[place] += velocity_loss(predicted, clean, share).sum().item()
        return (sums / len(rows)).tolist()

    def _sheet(self, phase: Phase, rows: Sequence[int]) -> Tensor:
        """Validation photos above what is drawn from their first texts, `float32[3, height, width]` in [0, 1]."""
        size = _objective(phase).size
        prompts = [self.prompts[row][0][0] for row in rows]
        (drawn,) = self.pipeline(
            prompts,
            num_inference_steps=SHEET_STEPS,
            guidance_scale=SHEET_GUIDANCE,
            height=size,
            width=size,
            generator=generators(0, len(rows)),
            output_type="pt",
            return_dict=False,
        )
        pictures = torch.from_numpy(np.array(self.pictures[list(rows)]))
        real = to_output(prepare_pictures(pictures, size), "pt")
        return torch.cat([torch.cat(list(row), -1) for row in (real, drawn)], -2)

    def _save_sheet(self, sheet: Tensor, name: str) -> None:
        from PIL import Image

        folder = self.out / "samples"
        folder.mkdir(exist_ok=True)
        pixels = (sheet.permute(1, 2, 0) * 255).round().byte().numpy()
        with replacing(folder / name) as partial:
            Image.fromarray(pixels).save(partial, "PNG")

    def save(self, folder: Path) -> None:
        """Write the base model with the head in it; the head's weights as float16."""
        text = self.pipeline.text_encoder
        text.save_base(folder)
        denoiser = copy.deepcopy(self.denoiser).cpu().half()
        denoiser.resize(_objective(self.phase).size)
        prior = None if self.pipeline.prior is None else copy.deepcopy(self.pipeline.prior).cpu().half()
        head = TextToImagePipeline(denoiser, self.pipeline.scheduler, text, prior=prior)
        save_head(folder, head)


def make_head(config: TrainConfig, bundle: Bundle) -> tuple[TextToImagePipeline, TrainConfig]:
    """A new head of a base model, or the one that it has; and the configuration with the sizes filled in.

    Raises:
        ModelError: the base has no pair, or no head.
        ArgumentError: the phases do not fit the head.
    """
    if config.denoiser is None:
        pipeline = load_head(bundle)
        if pipeline.vae is not None:
            raise ArgumentError(f"{bundle.name!r} draws latents, which cannot be trained; give denoiser for a new head")
        return pipeline, replace(config, denoiser=pipeline.denoiser.sizes, text_states=pipeline.text_encoder.states)
    text = TextEncoder(bundle, config.text_states)
    size = _objective(config.phases[-1]).size
    sizes = replace(config.denoiser, size=size, text_dim=text.dim, pooled_dim=text.pooled_dim)
    if sizes.channels != 3:
        raise ArgumentError(f"denoiser: channels={sizes.channels}; training draws pixels, which have 3")
    torch.manual_seed(config.seed)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    return TextToImagePipeline(Denoiser(sizes), scheduler, text), replace(config, denoiser=sizes)


def prompts_of(sample: Sample, encoder: TextEncoder) -> tuple[list[str], str]:
    """What a photo is learned from: its captions and title one by one, and as many of them joined as can be read."""
    title = sample.fields.get("title")
    texts = [*sample.captions, title] if isinstance(title, str) and title.strip() else list(sample.captions)
    texts = [text.strip().removesuffix(".").strip() for text in texts if text.strip(" .")]
    short = [text for text in texts if encoder.fits(text)]
    long = ""
    for text in short:
        joined = f"{long}. {text}" if long else text
        if encoder.fits(joined):
            long = joined
    return short, long


def prepare_pictures(pictures: Tensor, size: int) -> Tensor:
    """`uint8[batch, 3, side, side]` to `float32[batch, 3, size, size]` in [-1, 1]; smaller ones are means of pixels."""
    pixels = pictures.float() / 127.5 - 1
    return pixels if pixels.shape[-1] == size else nn.functional.interpolate(pixels, (size, size), mode="area")


def interleave(groups: Sequence[Sequence[int]], count: int) -> list[int]:
    """The first of each group, then the second of each, and so on, up to `count`."""
    longest = max(map(len, groups), default=0)
    return [group[i] for i in range(longest) for group in groups if i < len(group)][:count]


def _reads(phase: Phase, sample: Sample) -> bool:
    return phase.learns_from(Caption.name, sample.source)


def _objective(phase: Phase) -> Diffusion:
    assert isinstance(phase.objective, Diffusion)
    return phase.objective
