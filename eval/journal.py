"""Predictions on disk as they come, so that a run that was killed goes on where it was.

Each process appends to a file of its own, `predictions.jsonl` or `predictions.N.jsonl`. The first line is the run's
fingerprint; the others are `{"id", "prediction"}`, or `{"id", "error"}` for a photo that could not be used, which is
tried again next time.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from vlm.errors import DataError


class Journal:
    """The predictions of one run, by all its processes, past and present.

    Args:
        folder: of the run.
        fingerprint: what the predictions depend on, as JSON; a folder with another one is refused.

    Raises:
        DataError: the folder holds another run, or a file that is damaged.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]):
        self.folder, self.fingerprint = folder, dict(fingerprint)
        self.file: TextIO | None = None

    def read(self) -> tuple[dict[int | str, Any], dict[int | str, str]]:
        """What all processes have written: predictions, and what was wrong with other photos, by id.

        Raises:
            DataError: see above, or two different predictions of one id.
        """
        predictions: dict[int | str, Any] = {}
        errors: dict[int | str, str] = {}
        for path in sorted(self.folder.glob("predictions*.jsonl")):
            for record in self._records(path)[1:]:
                if "error" in record:
                    errors[record["id"]] = record["error"]
                    continue
                if predictions.get(record["id"], record["prediction"]) != record["prediction"]:
                    raise DataError(
                        f"{str(path)!r} predicts {record['id']!r} a second time, but not the same; "
                        "start again with another --out"
                    )
                predictions[record["id"]] = record["prediction"]
        return predictions, {id: error for id, error in errors.items() if id not in predictions}

    def open(self, rank: int = 0) -> None:
        """Open this process's file to append to, without its torn last line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ("predictions.jsonl" if rank == 0 else f"predictions.{rank}.jsonl")
        if path.exists():
            whole = path.read_bytes().rpartition(b"\n")
            with path.open("r+b") as file:
                file.truncate(len(whole[0]) + len(whole[1]))
        self.file = path.open("a", encoding="utf-8", newline="\n")
        if self.file.tell() == 0:
            self._write([self.fingerprint])

    def append(
        self, predictions: Sequence[tuple[int | str, Any]], errors: Sequence[tuple[int | str, str]] = ()
    ) -> None:
        """Add predictions and failures; they outlive the process from here on."""
        self._write([{"id": id, "prediction": value} for id, value in predictions])
        self._write([{"id": id, "error": error} for id, error in errors])

    def close(self) -> None:
        if self.file:
            self.file.close()

    def _write(self, records: Sequence[Mapping[str, Any]]) -> None:
        assert self.file is not None
        try:
            self.file.writelines(json.dumps(record) + "\n" for record in records)
            self.file.flush()
        except OSError as error:
            error.filename = error.filename or self.file.name  # a full disk does not say of which file
            raise

    def _records(self, path: Path) -> list[dict[str, Any]]:
        """The lines of a file; a torn last one is left out."""
        lines = path.read_bytes().split(b"\n")[:-1]
        records = []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if number > 1 and not {"id"} < record.keys():
                    raise ValueError("no prediction")
            except (ValueError, AttributeError) as error:
                raise DataError(
                    f"{str(path)!r}, line {number}, is damaged ({error}); start again with another --out"
                ) from None
            records.append(record)
        if records and records[0] != self.fingerprint:
            differs = [key for key in self.fingerprint if records[0].get(key) != self.fingerprint[key]] or ["fields"]
            was, now = records[0].get(differs[0]), self.fingerprint.get(differs[0])
            raise DataError(
                f"{str(path)!r} belongs to a run with {differs[0]}={was!r}, this one has {now!r}; give another --out"
            )
        return records
