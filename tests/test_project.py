"""The repository as a project: what it declares, what CI runs, and what the wheel carries."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTION = "vlm-foundation"
PACKAGES = ("vlm", "tasks", "eval")
CARDS = sorted((ROOT / "datasets").glob("*/README.md"))
SAMPLES = sorted((ROOT / "datasets/sample").glob("*.jpg"))


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `command` without standard input, with `environment` added to this process's own."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def repository_files(*folders: str) -> list[str]:
    """Paths of the files that are, or would be, committed; relative to the root."""
    listing = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *folders)
    if listing.returncode:
        pytest.skip("not a git checkout, so there is no list of the repository's files")
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


# Files


def test_no_file_is_too_large_to_host():
    sizes = {name: (ROOT / name).stat().st_size for name in repository_files()}
    assert sizes  # an empty listing would pass whatever lies in the tree
    assert {name: size for name, size in sizes.items() if size > 45_000_000} == {}


def test_an_installed_datasets_package_still_imports_from_the_root(tmp_path):
    package = tmp_path / "datasets"
    package.mkdir()
    (package / "__init__.py").write_text("MINE = False\n")
    # `python -c` puts the working directory first on the path, so the repository's folder is met before the package
    found = run(sys.executable, "-c", "import datasets; print(datasets.__file__)", PYTHONPATH=str(tmp_path))
    assert found.stdout.strip() == str(package / "__init__.py"), found.stderr


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_a_card_has_every_section(card):
    text = card.read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    # the sample photos state source and licence photo by photo, in one table
    joined = " ".join(headings).lower()
    assert [word for word in ("source", "licence", "splits", "layout", "fields") if word not in joined] == []
    for link in re.findall(r"\]\((\.\./[^)]+)\)", text):
        assert (card.parent / link).is_file(), f"{card}: {link} leads nowhere"


def test_every_data_folder_has_a_card():
    folders = {path.parts[-2] for path in map(Path, repository_files("datasets")) if len(path.parts) == 3}
    assert folders == {card.parent.name for card in CARDS}


def test_sample_photos_are_listed_with_a_free_licence():
    table = (ROOT / "datasets/sample/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+?)` \|.*\| (.+?) \|$", table, flags=re.MULTILINE)
    assert [name for name, _ in rows] == [photo.name for photo in SAMPLES]
    assert len(SAMPLES) >= 8
    for name, licence in rows:
        assert re.search(r"CC0 1\.0|CC BY 2\.0|public domain", licence), f"{name}: {licence}"


@pytest.mark.parametrize("photo", SAMPLES, ids=lambda photo: photo.name)
def test_a_sample_photo_is_small_and_carries_no_metadata(photo):
    assert photo.stat().st_size <= 150_000
    with Image.open(photo) as image:
        assert (image.format, max(image.size) <= 640, dict(image.getexif())) == ("JPEG", True, {})


# Declarations


def test_the_installed_version_is_the_declared_one():
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert declared
    assert importlib.metadata.version(DISTRIBUTION) == declared[1]  # differs: run `pip install -e .` again


def test_the_console_command_exists():
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="vlm")
    assert callable(command.load())


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the top-level package of each absolute import in `path`, and whether it runs when the file is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        yield from ((name.split(".")[0], node in tree.body) for name in names)


# imported on first use, after a check that says which extra to install
OPTIONAL = {
    "vlm/models/denoiser.py": {"diffusers"},
    "vlm/diffusion/": {"diffusers"},
    "vlm/train/diffusion.py": {"diffusers"},
}


def test_dependencies_are_those_that_the_code_imports():
    requirements = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or []]
    core = {canonicalize_name(requirement.name) for requirement in requirements if not requirement.marker}
    declared = {canonicalize_name(requirement.name) for requirement in requirements}
    distributions = importlib.metadata.packages_distributions()
    used, undeclared = set(), []
    for name in repository_files(*PACKAGES):
        if not name.endswith(".py"):
            continue
        for package, at_import in imports(ROOT / name):
            if package in sys.stdlib_module_names or package in PACKAGES:
                continue
            # of packages that are not installed, as of the harnesses in eval/adapters, only the name is known
            owners = {canonicalize_name(owner) for owner in distributions.get(package, [package])}
            used |= owners
            if any(name.startswith(place) and package in extras for place, extras in OPTIONAL.items()):
                at_import = False
            # eval/ may need its extra; a plain install must be enough to import the other two
            if not owners & (core if at_import and not name.startswith("eval/") else declared):
                undeclared.append(f"{name}: {package}")
    assert undeclared == []
    assert core - used == {"torchvision"}  # timm's need, declared so that pip picks the release that fits torch


# Checks


def test_ci_takes_the_test_command_from_the_readme():
    block = re.search(r"^<!-- test-command -->\n```\w*\n(.+?)\n```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert block, "README.md: no fenced block after <!-- test-command -->"
    assert run("bash", ".ci/test-command").stdout == block[1] + "\n"
    assert "\n" not in block[1], "the README promises one line"


NUMERICAL = "python -m pytest tests/models tests/train tests/convert tests/decoding tests/encoders"


@pytest.mark.parametrize(
    "breaks, reached",
    [
        ("", ["ruff check", "ruff format --check", "pyright", NUMERICAL, "python -m pytest -m slow", "adapters"]),
        ("pyright", ["ruff check", "ruff format --check", "pyright"]),
        ("setup", []),
    ],
)
def test_ci_runs_every_check_and_stops_at_the_first_failure(tmp_path, breaks, reached):
    """Run .ci/run on a README whose command writes stand-ins for the tools, which note how they were called."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / ".ci/adapters").write_text("echo adapters >>calls\n")
    stand_in = f'#!/bin/sh\\necho "${{0##*/}} $*" >>calls\\ntest "${{0##*/}}" != "{breaks}"\\n'
    command = (
        'echo "$PIP_CONSTRAINT" >constraint && touch calls && mkdir -p .venv/bin && '
        f"for tool in ruff pyright python; do printf '{stand_in}' >.venv/bin/$tool; done && "
        f"chmod +x .venv/bin/* && test '{breaks}' != setup"
    )
    (tmp_path / "README.md").write_text(f"# Name\n\n<!-- test-command -->\n```\n{command}\n```\n\n```\nexit 9\n```\n")

    finished = run("bash", tmp_path / ".ci/run", cwd=tmp_path.parent, CI="true")

    assert (finished.returncode == 0) == (breaks == ""), finished.stderr
    assert [line.strip() for line in (tmp_path / "calls").read_text().splitlines()] == reached
    assert (tmp_path / "constraint").read_text().strip() == str(tmp_path / ".ci/constraints.txt")


def test_ci_without_a_test_command_fails_and_says_why(tmp_path):
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "README.md").write_text("# Name\n\n```\npytest\n```\n")
    finished = run("bash", tmp_path / ".ci/run")
    assert finished.returncode != 0
    assert "no fenced block after '<!-- test-command -->'" in finished.stderr


def test_pre_commit_runs_the_quick_checks_of_ci():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook["entry"] for repository in config["repos"] for hook in repository["hooks"]]
    checks = re.findall(r'^run "([^"$]+)"$', (ROOT / ".ci/run").read_text(), flags=re.MULTILINE)
    assert hooks == [check for check in checks if "pytest" not in check and "adapters" not in check]


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this tree, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_the_cards_and_nothing_else(wheel):
    assert wheel.stat().st_size < 95_000_000
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    cards = {f"vlm/cards/{card.parent.name}/README.md" for card in CARDS}
    assert names == cards | set(repository_files(*PACKAGES))
    assert "vlm/py.typed" in names
    weights = {name.removeprefix("vlm/weights/tiny/") for name in names if name.startswith("vlm/weights/tiny/")}
    assert {"config.json", "tokenizer.json", "MODEL_CARD.md"} <= weights
    assert any(name.endswith(".safetensors") for name in weights)
    # files that no import shows to be missing: pages, training runs, cards
    for folder, kind in (("vlm/files/templates", "html"), ("eval/templates", "html"), ("vlm/train/configs", "json")):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob(f"*.{kind}")}
        assert len(files) >= 2 and files <= names
    assert len(cards) >= 20


@pytest.mark.slow
def test_the_wheel_captions_a_photo_from_any_folder(wheel, tmp_path):
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    installed = run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel)
    assert installed.returncode == 0, installed.stderr
    origin = run(sys.executable, "-c", "import vlm; print(vlm.__file__)", cwd=elsewhere, PYTHONPATH=str(target))
    assert origin.stdout.strip() == str(target / "vlm/__init__.py")  # not the checkout

    photo = shutil.copy(ROOT / "datasets/sample/cat.jpg", elsewhere)
    captioned = run(target / "bin/vlm", "caption", "--image", photo, cwd=elsewhere, PYTHONPATH=str(target))

    assert captioned.returncode == 0, captioned.stderr
    (caption,) = captioned.stdout.splitlines()
    assert len(caption.split()) >= 3
