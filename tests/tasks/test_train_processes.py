"""`vlm train` killed and started again, and on two processes: the weights are those of an unbroken run."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlm.errors import DataError
from vlm.train.checkpoint import read_counters

ROOT = Path(__file__).resolve().parents[2]


# Killed and started again


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "tasks.train", *arguments], cwd=ROOT, env=environment, stdout=file, stderr=file
        )


def finish(arguments: list[str], log: Path) -> None:
    assert start(arguments, log).wait(600) == 0, log.read_text()[-2000:]


def kill_in(phase: int, arguments: list[str], out: Path, log: Path) -> dict:
    """Run until the middle of a phase, then SIGKILL; returns the counters of the last checkpoint."""
    process = start(arguments, log)
    checkpoint = out / "checkpoint.safetensors"
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        # safetensors opens a file twice, and the run may replace it in between
        with contextlib.suppress(DataError):
            counters = read_counters(checkpoint)
            if counters["phase"] == phase and counters["step"] >= 5:
                process.send_signal(signal.SIGKILL)
                break
        time.sleep(0.005)
    assert process.wait(60) == -signal.SIGKILL, log.read_text()[-2000:]
    return read_counters(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_killed_in_every_phase_it_ends_with_the_weights_of_an_unbroken_run(tmp_path, questions, precision, runs):
    data, log = questions, tmp_path / "log"
    config = runs.write_config(tmp_path / "c.json", phases=[*runs.TINY["phases"], runs.MIXED], precision=precision)
    finish(runs.command(config, data, tmp_path / "whole"), log)
    arguments = runs.command(config, data, tmp_path / "broken")
    for phase in range(4):  # kept features, self-critical, full, two tasks
        counters = kill_in(phase, arguments, tmp_path / "broken", log)
        assert counters["phase"] == phase and 5 <= counters["step"] < 24  # 6 epochs of 4 batches
    finish(arguments, log)
    for name in (*(f"{phase}/model.safetensors" for phase in "abcd"), "checkpoint.safetensors"):
        whole, broken = (load_file(tmp_path / run / name) for run in ("whole", "broken"))
        assert whole.keys() == broken.keys()
        assert [key for key in whole if not torch.equal(whole[key], broken[key])] == [], name


@pytest.mark.slow
def test_another_configuration_refuses_the_checkpoint(tmp_path, data, runs):
    arguments = runs.command(runs.write_config(tmp_path / "c.json"), data, tmp_path / "out")
    kill_in(0, arguments, tmp_path / "out", tmp_path / "log")
    changed = runs.command(runs.write_config(tmp_path / "other.json", seed=1), data, tmp_path / "out")
    process = start(changed, tmp_path / "other.log")
    assert process.wait(600) == 2
    last = (tmp_path / "other.log").read_text().splitlines()[-1]
    assert (
        last.startswith("error: ") and "was written with another configuration or other data; use another --out" in last
    )


# Two processes

SCRIPT = """
import os, sys
import torch
from vlm.train import run

class Trainer(run.Seq2SeqTrainer):
    def run(self):
        super().run()
        torch.save(self.model.state_dict(), self.out / f"rank{self.accelerator.process_index}.pt")

run.Seq2SeqTrainer = Trainer
from tasks.train import main
sys.exit(main(sys.argv[1:]))
"""


def on_two_processes(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "script.py")]
    run = subprocess.run(
        [sys.executable, *launch, *arguments],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(tmp_path, questions, runs):
    data, phases = questions, [{**phase, "epochs": 1, "batch_size": 2} for phase in (*runs.TINY["phases"], runs.MIXED)]
    config = runs.write_config(tmp_path / "c.json", phases=phases, precision="no")
    on_two_processes(runs.command(config, data, tmp_path / "out"), tmp_path)
    first, second = (torch.load(tmp_path / "out" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    for name in "bc":  # and those after each ran
        phase = load_file(tmp_path / "out" / name / "model.safetensors")
        assert not torch.equal(phase["backbone.embed.weight"], first["backbone.embed.weight"].half())


@pytest.mark.slow
def test_two_processes_take_the_step_of_one_with_twice_the_batch(tmp_path, runs):
    # one caption for all photos: equal lengths make the mean of two means the mean of all words
    data = runs.write_data(tmp_path / "data", 8, ["a red dog runs"])
    gradients = {}
    for name, size in (("two", 4), ("one", 8)):
        phase = {
            "name": "a",
            "batch_size": size,
            "texts_per_photo": 1,
            "dropout": 0.0,
            "tower_lr": 1e-4,
            "clip_norm": 1e9,
        }
        config = runs.write_config(tmp_path / f"{name}.json", phases=[phase], precision="no")
        arguments = runs.command(config, data, tmp_path / name)
        if name == "two":
            on_two_processes(arguments, tmp_path)
        else:
            finish(arguments, tmp_path / "log")
        checkpoint = tmp_path / name / "checkpoint.safetensors"
        assert read_counters(checkpoint)["step"] == 1
        # after one step AdamW's first moment is (1 - 0.9) times the gradient
        gradients[name] = {k: v for k, v in load_file(checkpoint).items() if k.endswith(".exp_avg")}
    assert gradients["one"].keys() == gradients["two"].keys()
    for name, gradient in gradients["one"].items():
        limit = 1e-4 * gradient.abs().max().item() + 1e-8
        torch.testing.assert_close(gradients["two"][name], gradient, atol=limit, rtol=1e-3)
