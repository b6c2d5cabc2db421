"""What `vlm generate` does once its arguments are known: pipelines, files, and the settings that a PNG holds."""

import hashlib
import inspect
import json
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

import vlm
from vlm.diffusion.inputs import to_output
from vlm.diffusion.latents import decode
from vlm.diffusion.pipeline import TextToImagePipeline
from vlm.errors import ArgumentError, ImageError, ModelError, VLMError
from vlm.files import hub
from vlm.files.digest import files_sha256
from vlm.image import load_image

if TYPE_CHECKING:
    from tasks.generate import Args

KEY = "vlm"  # of the text in a PNG file
SHEET_COLUMNS = 8
PHOTOS = ("init_image", "mask", "variations_of")  # fields of a request that name files
OPTIONS = {  # of the command, by the arguments of pipelines
    "num_inference_steps": "--steps",
    "height": "--size",
    "width": "--size",
    "image": "--init-image",
    "mask_image": "--mask",
    "use_prior": "--prior",
    "callback_on_step_end": "--preview",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Request:
    """Everything that decides a picture, apart from the weights.

    Attributes:
        prompt: what to draw.
        seed: of the random numbers.
        negative_prompt: what to stay away from.
        steps: of the solver; None: the pipeline's own setting.
        guidance_scale: None: the pipeline's own setting.
        size: of the square picture, in pixels; None: the model's own.
        init_image: file to start from.
        strength: how much of it to redraw.
        mask: file that is white where to redraw.
        variations_of: file of the photo whose vector stands in place of the prompt's.
        prior: whether the prior's vector does.
        dtype: of the weights.
    """

    prompt: str
    seed: int
    negative_prompt: str = ""
    steps: int | None = None
    guidance_scale: float | None = None
    size: int | None = None
    init_image: str | None = None
    strength: float | None = None
    mask: str | None = None
    variations_of: str | None = None
    prior: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        if self.steps is not None and self.steps < 1:
            raise ArgumentError(f"--steps {self.steps} is below 1; give 1 or more")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < math.inf:
            raise ArgumentError(f"--guidance-scale {self.guidance_scale} is not 0 or more; 1 turns guidance off")
        if self.size is not None and self.size < 1:
            raise ArgumentError(f"--size {self.size} is below 1; give a number of pixels")
        if self.init_image is None and (self.strength is not None or self.mask is not None):
            name = "--mask" if self.mask is not None else "--strength"
            raise ArgumentError(f"{name} is for a picture to start from; give --init-image")
        if self.variations_of is not None and self.prior:
            raise ArgumentError("--variations-of and --prior both replace the prompt's vector; give one of them")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ArgumentError(f"--strength {self.strength} is not a share; give above 0 to 1")


class Drawer(ABC):
    """A loaded model that draws one picture at a time: a picture depends on nothing but its request.

    Attributes:
        name: what it was loaded by.
        sha256: digest of its weights, in hexadecimal.
    """

    name: str
    sha256: str

    @abstractmethod
    def draw(self, request: Request, quiet: bool) -> Image.Image:
        """Draw; without a progress bar where `quiet`.

        Raises:
            VLMError: the request cannot be drawn.
        """


class PipelineDrawer(Drawer):
    """Our head, or any text-to-image pipeline of diffusers."""

    def __init__(self, args: "Args", name: str):
        from vlm.diffusion.load import find_folder, weight_files

        folder = find_folder(name)
        self.name = name
        device = "cpu" if args.cpu_offload else args.device  # parts are moved when they work
        self.pipe = vlm.load_pipeline(name, device=device, dtype=DTYPES[args.dtype])
        self.sha256 = files_sha256(weight_files(folder))
        if args.cpu_offload:
            if args.device == "cpu":
                raise ArgumentError("--cpu-offload moves parts to a GPU; give --device cuda, or leave it out")
            self.pipe.enable_model_cpu_offload(device=args.device)
        if args.attention_slicing:
            self.pipe.enable_attention_slicing()
        self.adapted = None
        if args.adapter is not None:
            from vlm.diffusion.adapter import AdaptedPrompts

            if isinstance(self.pipe, TextToImagePipeline):
                raise ArgumentError(f"{name!r} reads prompts by our base already; leave --adapter out")
            self.adapted = AdaptedPrompts.load(os.path.expanduser(args.adapter))
            self.sha256 = hashlib.sha256(f"{self.sha256} {self.adapted.sha256()}".encode()).hexdigest()
        self.preview = None if args.preview is None else Path(os.path.expanduser(args.preview))

    def draw(self, request: Request, quiet: bool) -> Image.Image:
        pipe, options = self._pipeline(request), self._options(request)
        pipe.set_progress_bar_config(disable=quiet)
        known = inspect.signature(type(pipe).__call__).parameters
        if isinstance(pipe, TextToImagePipeline):
            self._check(pipe, request)
        if request.size is not None and "use_resolution_binning" in known:
            options["use_resolution_binning"] = False  # or some pipelines draw another size and resize the picture
        if request.init_image is not None and "height" not in known:
            options = {name: value for name, value in options.items() if name not in ("height", "width")}
        if unknown := [OPTIONS.get(name, _option(name)) for name in options if name not in known]:
            raise ArgumentError(
                f"{self.name!r} is a {type(pipe).__name__}, which has nothing for {unknown[0]}; leave it out"
            )
        generator = torch.Generator().manual_seed(request.seed)
        prompt: dict[str, Any] = {"prompt": request.prompt}
        if self.adapted is not None:
            prompt = self.adapted.arguments(pipe, request.prompt, options.pop("negative_prompt", ""))
        try:
            found: Any = pipe(**prompt, generator=[generator], **options)
        except VLMError:
            raise
        except (ValueError, RuntimeError, TypeError) as error:  # what pipelines of diffusers raise for wrong sizes
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ArgumentError(f"{self.name!r} cannot draw this: {reason}") from None
        return found.images[0]

    def _check(self, pipe: TextToImagePipeline, request: Request) -> None:
        pipe.check_size("--size ", request.size)
        if pipe.prior is None and (request.prior or request.variations_of is not None):
            name = "--prior" if request.prior else "--variations-of"
            raise ArgumentError(f"{self.name!r} learned to draw from texts alone; leave {name} out")

    def _show(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Write the preview: what our head expects in the end, or the latents of another pipeline as they stand."""
        assert self.preview is not None
        latents = tensors.get("clean", tensors["latents"])
        if latents.ndim != 4:
            raise ArgumentError(f"--preview: a {type(pipe).__name__} packs its latents; leave it out")
        with torch.no_grad():
            (picture,) = to_output(decode(getattr(pipe, "vae", None), latents[:1]), "pil")
        write(self.preview, picture, None, "preview")
        return {}

    def _pipeline(self, request: Request) -> Any:
        """The pipeline, or for pipelines of diffusers the one of the same parts that starts from a picture."""
        if request.init_image is None or "image" in inspect.signature(type(self.pipe).__call__).parameters:
            return self.pipe
        from diffusers.pipelines.auto_pipeline import AutoPipelineForImage2Image, AutoPipelineForInpainting

        kind = AutoPipelineForImage2Image if request.mask is None else AutoPipelineForInpainting
        try:
            return kind.from_pipe(self.pipe)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise ArgumentError(f"{self.name!r} cannot start from a picture: {reason}") from None

    def _options(self, request: Request) -> dict[str, Any]:
        given = {
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance_scale,
            "negative_prompt": request.negative_prompt or None,
            "height": request.size,
            "width": request.size,
            "image": None if request.init_image is None else _picture(request.init_image, request.size),
            "strength": request.strength,
            "mask_image": None if request.mask is None else _picture(request.mask, request.size),
            "variations_of": None if request.variations_of is None else [_picture(request.variations_of, None)],
            "use_prior": request.prior or None,
            "callback_on_step_end": None if self.preview is None else self._show,
        }
        return {name: value for name, value in given.items() if value is not None}


class CodesDrawer(Drawer):
    """A checkpoint of OFA that draws image codes, and the VQGAN that turns them into pixels."""

    def __init__(self, args: "Args", name: str):
        from vlm.convert.vqgan import load_vqgan

        if args.preview is not None:
            raise ArgumentError(f"{name!r} draws image codes all at once; leave --preview out")
        if args.vqgan is None:
            raise ArgumentError(f"{name!r} draws image codes; give --vqgan last.ckpt, which turns them into pixels")
        self.name = name
        self.vqgan = load_vqgan(args.vqgan).to(args.device)
        self.model = vlm.load(name, device=args.device, tokenizer=args.tokenizer)
        self.model.task("generate_image")
        self.sha256 = self.model.bundle.sha256()

    def draw(self, request: Request, quiet: bool) -> Image.Image:
        plain = Request(request.prompt, request.seed, dtype=request.dtype)
        if wrong := [
            field.name for field in fields(Request) if getattr(request, field.name) != getattr(plain, field.name)
        ]:
            raise ArgumentError(f"{self.name!r} draws image codes; {_option(wrong[0])} has no meaning for it")
        codes = self.model.image_codes(request.prompt, num_images=1, seed=request.seed)
        return next(iter(self.vqgan.pictures(codes)))


def load_drawer(args: "Args", name: str) -> Drawer:
    """The model that a name means.

    Raises:
        VLMError: there is none, or it does not draw.
    """
    kind = hub.resolve(name, ("model", "ofa")).kind
    return CodesDrawer(args, name) if kind == "ofa" or args.vqgan is not None else PipelineDrawer(args, name)


def draw_all(args: "Args", prompts: Sequence[str], out: Path) -> Iterator[Path]:
    """Draw each prompt, keep the best where `--rerank` says so, and write the files.

    Yields:
        Paths, the sheet of all pictures last.
    """
    each = args.rerank or args.num_images
    requests = [
        [request_of(args, prompt, (args.seed + first * each + place) % 2**63) for place in range(each)]
        for first, prompt in enumerate(prompts)
    ]
    total, many = len(prompts) * each, len(prompts) * args.num_images > 1
    names = [numbered(out, number) for number in range(1, len(prompts) * args.num_images + 1)] if many else []
    check_places(args, [out, *names], args)
    drawer = load_drawer(args, args.model)
    encoders = vlm.load_encoders(args.rank_model, device=args.device) if args.rerank else None
    kept: list[Image.Image] = []
    with tqdm(total=total, unit="picture", file=sys.stderr, disable=total < 2) as bar:
        for own in requests:
            pictures: list[Image.Image] = []
            for request in own:
                pictures.append(drawer.draw(request, quiet=total > 1))
                bar.update()
            order = list(range(each))
            if encoders is not None:
                with torch.inference_mode():
                    prompt, photo = own[0].prompt, own[0].variations_of
                    wanted = (
                        encoders.encode_text([prompt])
                        if prompt or photo is None
                        else encoders.encode_image([_picture(photo, None)])
                    )
                    scores = (encoders.encode_image(pictures) @ wanted.T)[:, 0]
                order = scores.sort(descending=True, stable=True).indices.tolist()[: args.num_images]
            for place in order:
                kept.append(pictures[place])
                path = names[len(kept) - 1] if many else out
                write(path, pictures[place], record_of(own[place], drawer))
                yield path
    if many:
        write(out, sheet(kept), None)
        yield out


def numbered(out: Path, number: int) -> Path:
    """The file of one of several pictures."""
    return out.with_name(f"{out.stem}-{number}{out.suffix}")


def check_places(args: "Args", outs: Sequence[Path], given: "Args | Request") -> None:
    """Make the folder of the pictures, and refuse to draw over a picture that is read.

    Args:
        args: of the command.
        outs: files that are going to be written, beside the preview.
        given: names the pictures that are read.

    Raises:
        ArgumentError: see above, or there can be no such folder.
    """
    try:
        outs[0].parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"--out {str(outs[0])!r} cannot be written: {error.strerror}") from None
    preview = [] if args.preview is None else [Path(os.path.expanduser(args.preview))]
    for name in PHOTOS:
        file = getattr(given, name)
        if file is not None and any(same_file(place, file) for place in (*outs, *preview)):
            raise ArgumentError(f"{_option(name)} {file!r} would be drawn over; name another file by --out")


def draw_again(args: "Args", out: Path) -> Iterator[Path]:
    """Draw the picture of a PNG file again, from the settings in it.

    Raises:
        ImageError: the file holds no settings.
        ModelError: the model has other weights by now.
    """
    assert args.again is not None
    request, record = read_record(Path(os.path.expanduser(args.again)))
    check_places(args, [out], request)
    name = record["model"] if args.model == "tiny" else args.model
    drawer = load_drawer(args, name)
    if drawer.sha256 != record["model_sha256"]:
        raise ModelError(
            f"{name!r} has other weights ({drawer.sha256[:12]}) than the picture was drawn with "
            f"({record['model_sha256'][:12]}); give their folder by --model, and "
            "--adapter if there was one"
        )
    drawer.name = record["model"]
    write(out, drawer.draw(request, quiet=False), record_of(request, drawer))
    yield out


def same_file(path: Path, name: str) -> bool:
    """Whether a path leads to a file that the user named."""
    other = Path(os.path.expanduser(name))
    return path.exists() and other.exists() and path.samefile(other)


def request_of(args: "Args", prompt: str, seed: int) -> Request:
    """The request of one picture."""
    same = {field.name: getattr(args, field.name) for field in fields(Request) if field.name not in ("prompt", "seed")}
    return Request(prompt, seed, **same)


def record_of(request: Request, drawer: Drawer) -> dict[str, Any]:
    """What a PNG file says of its picture."""
    files = {name: _sha256(path) for name in PHOTOS if (path := getattr(request, name)) is not None}
    record = {**asdict(request), "model": drawer.name, "model_sha256": drawer.sha256}
    return {
        **record,
        **{f"{name}_sha256": digest for name, digest in files.items()},
        "version": version("vlm-foundation"),
    }


def read_record(path: Path) -> tuple[Request, dict[str, Any]]:
    """The settings in a PNG file.

    Raises:
        ImageError: there is no such file, or it holds no settings.
        ArgumentError: a picture that it started from has changed.
    """
    load_image(path)  # says what is wrong with files that are no pictures
    try:
        with Image.open(path) as image:
            record = json.loads(image.info[KEY])
        # pictures of older versions lack the newer settings
        request = Request(**{field.name: record[field.name] for field in fields(Request) if field.name in record})
        assert all(isinstance(record[name], str) for name in ("model", "model_sha256"))
    except (KeyError, TypeError, ValueError, AssertionError):
        raise ImageError(f"{str(path)!r} holds no settings; give a PNG file that `vlm generate` wrote") from None
    for name in PHOTOS:
        if (file := getattr(request, name)) is not None and _sha256(file) != record.get(f"{name}_sha256"):
            raise ArgumentError(f"{file!r} is not the picture that {str(path)!r} was drawn from; put that one there")
    return request, record


def write(path: Path, picture: Image.Image, record: dict[str, Any] | None, option: str = "out") -> None:
    """Write a PNG file whose bytes depend on the picture and the record alone.

    Raises:
        ArgumentError: the file cannot be written.
    """
    from vlm.files.atomic import replacing

    info = PngInfo()
    if record is not None:
        info.add_text(KEY, json.dumps(record, ensure_ascii=True, sort_keys=True))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            picture.save(partial, "PNG", pnginfo=info)
    except OSError as error:
        raise ArgumentError(f"--{option} {str(path)!r} cannot be written: {error.strerror or error}") from None


def sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """All pictures on one, row by row, with white between them."""
    columns = min(SHEET_COLUMNS, math.ceil(math.sqrt(len(pictures))))
    gap, width, height = 2, max(p.width for p in pictures), max(p.height for p in pictures)
    rows = math.ceil(len(pictures) / columns)
    found = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for place, picture in enumerate(pictures):
        found.paste(picture, (place % columns * (width + gap), place // columns * (height + gap)))
    return found


def _picture(path: str, size: int | None) -> Image.Image:
    from PIL import ImageOps

    picture = load_image(Path(os.path.expanduser(path)))
    return picture if size is None else ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)


def _option(name: str) -> str:
    """A field as it is typed."""
    return f"--{name.replace('_', '-')}"


def _sha256(path: str) -> str:
    file = Path(os.path.expanduser(path))
    load_image(file)  # says what is wrong with it
    return hashlib.sha256(file.read_bytes()).hexdigest()
