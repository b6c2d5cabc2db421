"""Our models in lmms-eval (Zhang et al., 2024): captions and answers for its tasks.

A request of `generate_until` has `args`: context, generation_kwargs, doc_to_visual, doc_id, task, split. Its photos are
`doc_to_visual(task_dict[task][split][doc_id])`, a list.
"""

import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NoReturn

from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from eval import models
from eval.predict import Batches
from vlm.data.stream import ordered_map
from vlm.errors import ArgumentError, ImageError

try:
    from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ArgumentError(f"lmms-eval cannot be imported ({error}); pip install lmms-eval") from None

NAME = "vlm"  # of the model
# tasks, the preferred one first, and what each takes from the context of a request
INPUTS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "answer": lambda context: (question(context),),
    "caption": lambda context: (),
}

# LLaVA's instruction (Liu et al., 2023), which many tasks put after the question; models expect the question alone,
# and add what they need
_INSTRUCTION = re.compile(r"\s*(please )?answer the question using a single word or phrase\.?\s*$", re.IGNORECASE)


class VLM(lmms):
    """A model of `eval.models.load`, asked one photo at a time.

    A request for text is answered by the model's `caption`, whatever the context says, or by its `answer` with the
    context as the question. The model keeps its own prompt and search; of a task's `generation_kwargs`, only `until` is
    looked at.

    Args:
        pretrained: what `eval.models.load` takes.
        task: `caption` or `answer`; without it, what the model can do, `answer` where it can do both.
        device: where the model runs; `cuda` is the process's own GPU where there are several.
        batch_size: photos that go through the model together.

    Raises:
        ArgumentError: a task that the model cannot do, or a batch size that is not a number.
        ModelError: there is no such model.
    """

    def __init__(self, pretrained: str = "tiny", task: str = "", device: str = "cpu", batch_size: int | str = 1):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ArgumentError(f"batch_size={batch_size} is not a number from 1 up; give one")
        self.accelerator = Accelerator()
        if device == "cuda" and self.accelerator.num_processes > 1:
            device = f"cuda:{self.accelerator.local_process_index}"
        self.model, self.task = load(pretrained, task, device)
        self.batch_size = int(batch_size)

    @property
    def device(self):
        """Where the harness exchanges numbers between processes."""
        return self.accelerator.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Captions, or answers to the contexts, up to the task's stop strings.

        Raises:
            ArgumentError: a document has no photo, or several.
            ImageError: a photo cannot be used.
        """

        def write(batch: Sequence[Any], images: Sequence[Any]) -> list[str]:
            rows = [INPUTS[self.task](request.args[0]) for request in batch]
            return getattr(self.model, self.task)(images, *map(list, zip(*rows, strict=True)))

        photos = ((request, self._photo(request)) for request in requests)  # documents are read on this thread alone
        pairs = zip(requests, ordered_map(self._prepare, photos, ahead=2 * self.batch_size), strict=True)
        batches, texts = Batches(write, self.batch_size), []
        with tqdm(total=len(requests), disable=self.rank != 0) as bar:
            while part := list(islice(pairs, batches.size)):
                texts += batches([request for request, _ in part], [image for _, image in part])
                bar.update(len(part))
        return [stop(text, request.args[1].get("until")) for text, request in zip(texts, requests, strict=True)]

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        """No model of the harness scores given answers here.

        Raises:
            ArgumentError: always.
        """
        self._refuse("score given answers", requests)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """No model of ours holds a conversation.

        Raises:
            ArgumentError: always.
        """
        self._refuse("hold a conversation", requests)

    def _refuse(self, what: str, requests: Sequence[Any]) -> NoReturn:
        raise ArgumentError(
            f"model {self.model.name!r} cannot {what}, as task {requests[0].task_name!r} asks; "
            "choose a task whose output_type is generate_until"
        )

    def _photo(self, request: Any) -> Image.Image:
        _, _, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        if len(visuals) != 1 or not isinstance(visuals[0], Image.Image):
            what = ", ".join(type(visual).__name__ for visual in visuals) or "nothing to look at"
            raise ArgumentError(
                f"task {task!r}: document {doc_id} has {what}; models of this package are asked about one photo; "
                "choose another task"
            )
        return visuals[0]

    def _prepare(self, pair: tuple[Any, Image.Image]) -> Any:
        request, photo = pair
        try:
            return self.model.prepare(photo)
        except ImageError as error:
            raise ImageError(f"task {request.task_name!r}, document {request.args[3]}: {error}") from None


def load(name: str, task: str, device: str) -> tuple[Any, str]:
    """Load a model for `VLM`: the model and what it is asked for; arguments and errors as there."""
    if task:
        if task not in INPUTS:
            raise ArgumentError(f"task={task} is unknown; choose one of: {', '.join(INPUTS)}")
        return models.load(name, task, device), task
    first, last = INPUTS
    try:
        model = models.load(name, last, device)
    except ArgumentError:
        model = models.load(name, first, device)
    return model, next(choice for choice in INPUTS if models.able(model, choice))


def question(context: str) -> str:
    """A context without the common instruction to be brief."""
    return _INSTRUCTION.sub("", context).strip()


def stop(text: str, until: str | Sequence[str] | None) -> str:
    """A text up to the first of the stop strings."""
    for end in [until] if isinstance(until, str) else until or ():
        text = text.split(end, 1)[0] if end else text
    return text


def manifest() -> Any:
    """What lmms-eval's registry keeps of a model: its name, and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest(NAME, simple_class_path=f"{VLM.__module__}.{VLM.__name__}")


def run() -> None:
    """Run the harness's command line on `sys.argv`."""
    from lmms_eval.cli import dispatch  # pyright: ignore[reportMissingImports]
    from lmms_eval.models import MODEL_REGISTRY_V2  # pyright: ignore[reportMissingImports]

    MODEL_REGISTRY_V2.register_manifest(manifest())
    dispatch.main()
