"""Make the pictures of the documentation again: `python docs/images/make.py`, from the root of the repository.

Needs `pip install -e ".[eval,retrieval,diffusion]"` and Chromium, which takes the screenshots (`apt-get install
chromium`).
"""

import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

import vlm

ROOT = Path(__file__).parents[2]
OUT = Path(__file__).parent
SAMPLE = ROOT / "datasets/sample"
PHOTO = SAMPLE / "photographer.jpg"  # README's first command captions it
QUERY = "a person in uniform"
SHOWN = "~/photos"  # in place of the temporary folder
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FAILURES = {  # sample photos, and a question about each
    "coffee": "What is this?",
    "rocket": "What is in the picture?",
    "astronaut": "What is the woman wearing?",
    "stairs": "Where are the people?",
    "raccoon": "What animal is it?",
    "flower": "How many people are there?",
}
COLOURS = 256  # of a screenshot, which keeps it small

# what a person sees in the sample photos; written for the picture of a report, no test set
CAPTIONS = {
    "astronaut": [
        "a smiling astronaut in an orange space suit in front of a flag",
        "a woman in an orange space suit holds her helmet",
        "portrait of an astronaut with a model of the space shuttle behind her",
    ],
    "cat": [
        "a close up of the face of a tabby cat",
        "a cat with green eyes looks to the side",
        "a brown striped cat on a blanket",
    ],
    "coffee": [
        "a cup of coffee on a saucer with a spoon",
        "an espresso in a red cup on a wooden table",
        "a close up of a small cup of coffee",
    ],
    "flower": [
        "a close up of an orange flower in front of dark leaves",
        "a round orange dahlia in bloom",
        "an orange flower with many petals",
    ],
    "officer": [
        "an older woman in a navy uniform with a hat and glasses",
        "portrait of an officer in front of an american flag",
        "a white haired woman in a dark blue uniform with medals",
    ],
    "photographer": [
        "a man looks through a camera on a tripod",
        "a black and white photo of a man with a camera on a lawn",
        "a man in a dark coat is filming in a park",
    ],
    "raccoon": [
        "a raccoon lies among green palm leaves",
        "a close up of a raccoon in a tree",
        "a gray and white raccoon looks at the camera",
    ],
    "rocket": [
        "a white rocket stands on its launch pad at dusk",
        "a rocket between tall towers and bright lights",
        "a rocket ready to be launched in the evening",
    ],
    "stairs": [
        "people climb up metal stairs outdoors",
        "a black and white photo of people on a staircase",
        "a man with a backpack walks up the stairs of a tower",
    ],
    "temple": [
        "a tall red and green temple above a lake",
        "a Chinese tower among trees with a lake behind it",
        "a red tower with several roofs over a lake",
    ],
}


def main() -> int:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print("error: no Chromium, which takes the screenshots; apt-get install chromium", file=sys.stderr)
        return 2
    with_caption(PHOTO, vlm.load("tiny").caption(PHOTO)).save(OUT / "caption.png", optimize=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(SAMPLE, folder / "photos")
        screenshot(browser, search_page(folder), folder, height=480).save(OUT / "search.png", optimize=True)
        screenshot(browser, report_page(folder), folder, height=1120).save(OUT / "report.png", optimize=True)
        sheet_of_pictures(folder).save(OUT / "drawn.png", optimize=True)
    failures().save(OUT / "failures.png", optimize=True)
    for name in ("caption.png", "failures.png", "search.png", "report.png", "drawn.png"):
        print(f"{name}: {(OUT / name).stat().st_size / 1000:.0f} kB")
    return 0


def with_caption(photo: Path, caption: str) -> Image.Image:
    """The photo with its caption on a white strip beneath."""
    image = Image.open(photo).convert("RGB")
    font = ImageFont.load_default(size=18)
    width = max(image.width, round(font.getlength(caption))) + 24
    page = Image.new("RGB", (width, image.height + 60), "white")
    page.paste(image, ((width - image.width) // 2, 12))
    ImageDraw.Draw(page).text((width / 2, image.height + 36), caption, fill="black", font=font, anchor="mm")
    return page.quantize(COLOURS)


def failures() -> Image.Image:
    """Sample photos that `tiny` gets wrong, with what it says of them."""
    model, font = vlm.load("tiny"), ImageFont.load_default(size=15)
    width, height, gap = 300, 225, 12
    page = Image.new("RGB", (3 * (width + gap) + gap, 2 * (height + 90)), "white")
    draw = ImageDraw.Draw(page)
    for place, (name, question) in enumerate(FAILURES.items()):
        left, top = gap + place % 3 * (width + gap), gap + place // 3 * (height + 90)
        photo = SAMPLE / f"{name}.jpg"
        page.paste(ImageOps.fit(Image.open(photo).convert("RGB"), (width, height), centering=(0.5, 0.2)), (left, top))
        said = [*textwrap.wrap(model.caption(photo), 38), f"{question} {model.answer(photo, question)}"]
        draw.text((left, top + height + 6), "\n".join(said), fill="black", font=font)
    return page.quantize(COLOURS)


def search_page(folder: Path) -> Path:
    """The page of a search over the sample photos."""
    run("tasks.retrieve", "index", "photos", "--out", "my.index", cwd=folder)
    run("tasks.retrieve", "search", "my.index", QUERY, "--top", "4", "--html", "search.html", cwd=folder)
    return folder / "search.html"


def report_page(folder: Path) -> Path:
    """The report of a run over the sample photos, against `CAPTIONS`."""
    records = [{"file": f"{name}.jpg", "captions": captions} for name, captions in CAPTIONS.items()]
    (folder / "photos/captions.json").write_text(json.dumps(records))
    title = "Ten sample photos, captions written for this page"
    run("eval", "captions_json", "--data", "photos", "--out", "report", "--title", title, cwd=folder)
    return folder / "report/report.html"


def sheet_of_pictures(folder: Path) -> Image.Image:
    """One picture of each line of prompts.txt, with the command's own settings."""
    run("tasks.generate", "--prompts", str(OUT / "prompts.txt"), "--out", "sheet.png", cwd=folder)
    return Image.open(folder / "sheet.png")


def run(module: str, *arguments: str, cwd: Path) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def screenshot(browser: str, page: Path, folder: Path, height: int) -> Image.Image:
    """The top of a page, as Chromium draws it."""
    page.write_text(page.read_text("utf-8").replace(str(folder.resolve() / "photos"), SHOWN), "utf-8")
    file = page.with_suffix(".png")
    options = [
        "--headless",
        "--no-sandbox",
        "--hide-scrollbars",
        f"--window-size=1100,{height}",
        f"--screenshot={file}",
    ]
    subprocess.run([browser, *options, page.as_uri()], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return Image.open(file).convert("RGB").quantize(COLOURS)


if __name__ == "__main__":
    sys.exit(main())
