"""Models of transformers under the protocols of the harness: `--model hf:DIR_OR_HUB_ID`.

A family is a class that has a method for each task it can do. Prompts and options of generation are the publisher's
where there are any; docs/peers.md says which. No code from a checkpoint is run, and pickles are read by torch's
`weights_only` loader alone.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from eval.benchmark import Box
from vlm.errors import ArgumentError, ModelError
from vlm.files import hub
from vlm.files.digest import files_sha256
from vlm.image import load_image
from vlm.models.device import move

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

SAFETENSORS, PICKLES = "model*.safetensors", "pytorch_model*.bin"
TEXTS = ("*.json", "*.txt", "*.model", "*.jinja")  # configurations, tokenizer, chat template


class Peer:
    """A model and its processor, as transformers loads them from a folder.

    Attributes:
        prompts: of each task; `{}` stands for the question or phrase.
        options: of `generate`, for each task.
    """

    prompts: ClassVar[dict[str, str]] = {}
    options: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, name: str, folder: Path, model: Any, processor: Any, weights: str):
        self.name, self.model, self.processor, self.weights = name, model, processor, weights
        self.texts = files_sha256(file for pattern in TEXTS for file in sorted(folder.glob(pattern)))

    def prepare(self, image: Any) -> "Image":
        return load_image(image)

    def settings(self, task: str) -> dict[str, Any]:
        import transformers

        return {
            "prompt": self.prompts[task],
            **self.options[task],
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "image_processor": type(self.processor.image_processor).__name__,
            "configuration_sha256": self.texts,
            "transformers": transformers.__version__,
        }

    def _read(self, images: Sequence[Any], texts: Sequence[str]) -> Any:
        try:
            inputs = self.processor(
                images=list(images),
                text=list(texts),
                padding=True,
                return_token_type_ids=False,  # no family reads them, and GIT's tokenizer is one that may give them
                return_tensors="pt",
            )
        except ValueError as error:  # a question that holds the model's own markers, such as <image>
            raise ArgumentError(
                f"model {self.name!r} cannot read one of {list(texts)!r}: {_line(error)}; leave that text out"
            ) from None
        return inputs.to(self.model.device, self.model.dtype)

    def _generate(self, task: str, inputs: Any) -> "Tensor":
        """`int64[batch, tokens]`; decoder-only families repeat the prompt first."""
        import torch

        with torch.inference_mode():
            return self.model.generate(**inputs, do_sample=False, **self.options[task])

    def _decode(self, ids: "Tensor") -> list[str]:
        return [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]

    def _by_length(self, images: Sequence[Any], texts: Sequence[str], write: Callable[[Any], list[str]]) -> list[str]:
        """Write for texts of equally many tokens at a time, where `generate` takes padding for words."""
        groups: dict[int, list[int]] = {}
        for place, ids in enumerate(self.processor.tokenizer(list(texts)).input_ids):
            groups.setdefault(len(ids), []).append(place)
        found: dict[int, str] = {}
        for places in groups.values():
            inputs = self._read([images[place] for place in places], [texts[place] for place in places])
            found.update(zip(places, write(inputs), strict=True))
        return [found[place] for place in range(len(texts))]


class BlipCaptioner(Peer):
    """BLIP (Li et al., 2022), with the settings of its `configs/caption_coco.yaml`."""

    prompts: ClassVar = {"caption": "a picture of"}
    options: ClassVar = {"caption": {"num_beams": 3, "max_length": 20, "min_length": 5}}

    def caption(self, images: Sequence["Image"]) -> list[str]:
        inputs = self._read(images, [self.prompts["caption"]] * len(images))
        ids = self._generate("caption", inputs)
        return self._decode(ids[:, inputs["input_ids"].shape[1] - 1 :])  # `generate` drops the prompt's [SEP]


class BlipAnswerer(Peer):
    """BLIP for questions, with the settings of the generating branch of its `models/blip_vqa.py`."""

    prompts: ClassVar = {"answer": "{}"}
    options: ClassVar = {"answer": {"num_beams": 3, "max_length": 10, "min_length": 1}}

    def answer(self, images: Sequence["Image"], questions: Sequence[str]) -> list[str]:
        # the decoder attends to every token of the question, padding included
        return self._by_length(images, questions, lambda inputs: self._decode(self._generate("answer", inputs)))


class Git(Peer):
    """GIT (Wang et al., 2022), with the beam search of its `generativeimage2text/model.py`.

    One architecture for both tasks: which of them the weights were trained for, only their publisher knows.
    """

    prompts: ClassVar = {"caption": "", "answer": "{}"}
    options: ClassVar = {
        task: {"num_beams": 4, "length_penalty": 0.6, "max_new_tokens": 40} for task in ("caption", "answer")
    }

    def caption(self, images: Sequence["Image"]) -> list[str]:
        return self._continue("caption", images, [self.prompts["caption"]] * len(images))

    def answer(self, images: Sequence["Image"], questions: Sequence[str]) -> list[str]:
        return self._continue("answer", images, questions)

    def _continue(self, task: str, images: Sequence["Image"], texts: Sequence[str]) -> list[str]:
        def write(inputs: Any) -> list[str]:
            for name in ("input_ids", "attention_mask"):
                inputs[name] = inputs[name][:, :-1]  # without [SEP], which ends a text
            return self._decode(self._generate(task, inputs)[:, inputs["input_ids"].shape[1] :])

        return self._by_length(images, texts, write)


class Florence2(Peer):
    """Florence-2 (Xiao et al., 2024), with the settings of its model card."""

    prompts: ClassVar = {"caption": "<CAPTION>", "ground": "<CAPTION_TO_PHRASE_GROUNDING>{}"}
    options: ClassVar = {task: {"num_beams": 3, "max_new_tokens": 1024} for task in ("caption", "ground")}

    def caption(self, images: Sequence["Image"]) -> list[str]:
        return self._decode(self._generate("caption", self._read(images, [self.prompts["caption"]] * len(images))))

    def ground(self, images: Sequence["Image"], phrases: Sequence[str]) -> list[Box]:
        """The first box that is named; where none is, an empty one, which is wrong everywhere."""
        inputs = self._read(images, [self.prompts["ground"].format(phrase) for phrase in phrases])
        texts = self.processor.batch_decode(self._generate("ground", inputs), skip_special_tokens=False)
        return [self._box(text, *image.size) for image, text in zip(images, texts, strict=True)]

    def _box(self, text: str, width: int, height: int) -> Box:
        task = self.prompts["ground"].format("")
        found = self.processor.post_process_generation(text, task=task, image_size=(width, height))[task]["bboxes"]
        x1, y1, x2, y2 = found[0] if found else (0, 0, 0, 0)
        return x1 / width, y1 / height, x2 / width, y2 / height


class Chat(Peer):
    """SmolVLM and SmolVLM2 (Marafioti et al., 2025), and Idefics3, by the chat template of the checkpoint."""

    prompts: ClassVar = {
        "caption": "Provide a one-sentence caption for the provided image.",  # lmms-eval's for COCO
        "answer": "{}\nGive a very brief answer.",  # the publisher's, in VLMEvalKit
    }
    options: ClassVar = {"caption": {"max_new_tokens": 64}, "answer": {"max_new_tokens": 32}}

    def __init__(self, *args: Any):
        super().__init__(*args)
        if not self.processor.chat_template:
            raise ModelError(f"{self.name!r} has no chat template; give its instruction-tuned version")
        self.processor.tokenizer.padding_side = "left"  # new words follow the last token

    def caption(self, images: Sequence["Image"]) -> list[str]:
        return self._reply("caption", images, [self.prompts["caption"]] * len(images))

    def answer(self, images: Sequence["Image"], questions: Sequence[str]) -> list[str]:
        return self._reply("answer", images, [self.prompts["answer"].format(question) for question in questions])

    def _reply(self, task: str, images: Sequence["Image"], texts: Sequence[str]) -> list[str]:
        inputs = self._read([[image] for image in images], [self._chat(text) for text in texts])
        return self._decode(self._generate(task, inputs)[:, inputs["input_ids"].shape[1] :])

    def _chat(self, text: str) -> str:
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        return self.processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)


# by what config.json calls its architecture
FAMILIES: dict[str, type[Peer]] = {
    "BlipForConditionalGeneration": BlipCaptioner,
    "BlipForQuestionAnswering": BlipAnswerer,
    "GitForCausalLM": Git,
    "Florence2ForConditionalGeneration": Florence2,
    "Idefics3ForConditionalGeneration": Chat,
    "SmolVLMForConditionalGeneration": Chat,
}


def load(name: str, device: str) -> Peer:
    """Load a model of transformers: float32 on a CPU, in the checkpoint's own type elsewhere.

    Args:
        name: `hf:` and a local folder, which is used without a network, or a repository id of the Hugging Face hub.
        device: where it runs.

    Raises:
        ArgumentError: transformers is not installed, or the device cannot be used.
        ModelError: there is no such model, it is of another family, or its files cannot be used.
    """
    try:
        import transformers
    except ImportError:
        needed = "pip install 'vlm-foundation[hf]'"
        raise ArgumentError(f"{name!r} needs transformers; install it: {needed}") from None

    folder = _folder(hub.resolve(name, ("hf",)).rest)
    architecture = _architecture(folder)
    known = getattr(transformers, architecture, None)
    if known is None:
        raise ModelError(f"transformers {transformers.__version__} has no {architecture}; update it")
    safe = sorted(folder.glob(SAFETENSORS))
    files = safe or sorted(folder.glob(PICKLES))
    if not files:
        raise ModelError(f"{str(folder)!r} has no weights: neither {SAFETENSORS} nor {PICKLES}; download it again")
    offline = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = transformers.AutoProcessor.from_pretrained(folder, **offline)
        model, report = known.from_pretrained(
            folder,
            dtype="float32" if device == "cpu" else "auto",
            use_safetensors=bool(safe),
            weights_only=True,
            output_loading_info=True,
            **offline,
        )
    except Exception as error:  # whatever is wrong with a foreign file, from the depths of several libraries
        raise ModelError(f"{str(folder)!r} cannot be loaded: {_line(error)}") from None
    lacking = sorted(report["missing_keys"])
    if lacking:  # transformers would put random numbers there
        raise ModelError(f"{str(folder)!r} lacks {len(lacking)} of the model's tensors, such as {lacking[0]}")
    return FAMILIES[architecture](name, folder, move(model, device), processor, files_sha256(files))


def _folder(name: str) -> Path:
    """A local folder, or what the hub has under that name: weights as safetensors where there are any.

    Raises:
        ModelError: there is neither.
    """
    path = Path(os.path.expanduser(name))  # unlike Path's, it leaves a user that does not exist alone
    if path.is_dir():
        return path
    if path.exists() or not hub.is_hub_id(name):
        raise ModelError(f"no model at {name!r}; after hf: comes a folder with config.json, or a hub id OWNER/NAME")
    others = ["*/*"]  # folders hold other formats
    folder = hub.fetch(name, [*TEXTS, SAFETENSORS], others)
    if not any(folder.glob(SAFETENSORS)):
        hub.fetch(name, [PICKLES], others)
    return folder


def _architecture(folder: Path) -> str:
    """The class that config.json names.

    Raises:
        ModelError: there is none, or no adapter for it.
    """
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["architectures"][0]
    except FileNotFoundError:
        raise ModelError(f"{str(folder)!r} is not a model's folder: config.json missing") from None
    except (ValueError, LookupError, TypeError):
        raise ModelError(f"{str(file)!r} does not name the model's architecture; download it again") from None
    if found not in FAMILIES:
        raise ModelError(
            f"{str(folder)!r} holds a {found}, which is not supported; choose one of: {', '.join(FAMILIES)}"
        )
    return found


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
