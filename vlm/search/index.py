"""Search over a folder of photos: the vectors of an encoder pair in a LanceDB table.

A row is a photo: its absolute path, size and time of change, its vector of unit length, and a caption where one was
asked for. The model that made the vectors stands in the table's schema, so that no index can lack it. All writes are
commits of LanceDB, which happen whole or not at all: a run that is killed leaves the photos that it had committed.
"""

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from vlm.encoders import Encoders
from vlm.errors import ArgumentError, DataError, ModelError, VLMError, check_list
from vlm.image import ImageSource, check_photos
from vlm.tokenizer import check_unicode

EXACT_ROWS = 50_000  # rows up to which every vector is compared
RECALL_QUERIES = 100  # stored photos that ask for their neighbours when the recall is measured
NPROBES, REFINE = 50, 4  # cells of the approximate index that are read; candidates a result that are compared exactly
KEPT_VERSIONS = timedelta(minutes=10)  # a search that began before a run goes on reading what it opened

_TABLE = "photos"
_MADE_BY = b"vlm.index"  # key of the schema's metadata


@dataclass(frozen=True)
class Hit:
    """A photo that was found; `score` is the cosine between its vector and the query's."""

    path: str
    score: float
    caption: str | None


@dataclass(frozen=True)
class Maker:
    """The model whose vectors an index holds."""

    model: str
    weights_sha256: str
    dim: int

    def __str__(self) -> str:
        return f"{self.model!r} (weights {self.weights_sha256[:12]})"


class Index:
    """An opened index; `open_index` and `open_or_create` make it."""

    def __init__(self, where: str, table: Any, maker: Maker):
        self.where, self.table, self.maker = where, table, maker

    def __len__(self) -> int:
        with _explained(self.where):
            self.table.checkout_latest()
            return self.table.count_rows()

    def check(self, encoders: Encoders) -> None:
        """Raise ModelError unless `encoders` made this index."""
        given = maker_of(encoders)
        if given.weights_sha256 != self.maker.weights_sha256:
            raise ModelError(
                f"index {self.where!r} was made by {self.maker}, not by {given}; "
                "name that model, or index into another folder"
            )

    def search(
        self,
        encoders: Encoders,
        text: str | None = None,
        *,
        images: Sequence[ImageSource] = (),
        minus: Sequence[str] = (),
        top: int = 10,
    ) -> list[Hit]:
        """The photos nearest to a sentence, to photos, or to their sum; the nearest first, at most as many as stored.

        Raises:
            ModelError: another model made the index.
            ArgumentError: there is nothing to search for, or `top` is below 1.
            ImageError: one of `images` cannot be used.
            DataError: the index cannot be read.
        """
        self.check(encoders)
        return self.nearest(query_vector(encoders, text, images=images, minus=minus), top)

    def nearest(self, vector: Tensor, top: int = 10, *, exact: bool = False) -> list[Hit]:
        """The photos nearest to a `float32[dim]`; `exact` compares all of them, whatever their number.

        Raises:
            ArgumentError: `top` is below 1.
            DataError: the index cannot be read.
        """
        if top < 1:
            raise ArgumentError(f"top={top} is below 1; give 1 or more")
        with _explained(self.where):
            rows = self.table.count_rows()
            if not rows:
                return []
            query = self.table.search(vector.float().cpu().numpy()).distance_type("cosine").limit(min(top, rows))
            query = query.select(["path", "caption", "_distance"])
            query = query.bypass_vector_index() if exact else query.nprobes(NPROBES).refine_factor(REFINE)
            found = query.to_arrow().to_pylist()
        return [Hit(row["path"], 1 - row["_distance"], row["caption"]) for row in found]

    def recall(self, top: int = 10, queries: int = RECALL_QUERIES) -> float:
        """Share of the truly nearest `top` neighbours of stored photos that search finds, the photo itself aside."""
        with _explained(self.where):
            rows = self.table.count_rows()
            at = sorted({rows * number // queries for number in range(queries)} if rows > queries else range(rows))
            vectors = self.table.take_offsets(at).select(["path", "vector"]).to_arrow().to_pylist()
        found = wanted = 0
        for row in vectors:
            vector = torch.tensor(row["vector"])
            truth = {hit.path for hit in self.nearest(vector, top + 1, exact=True)} - {row["path"]}
            found += len(truth & {hit.path for hit in self.nearest(vector, top + 1)})
            wanted += len(truth)
        return found / wanted if wanted else 1.0

    def known(self) -> dict[str, tuple[int, int, bool]]:
        """Size, time of change, and whether there is a caption, of each photo by its path."""
        with _explained(self.where):
            self.table.checkout_latest()  # others may have written since it was opened
            rows = self.table.search().select(["path", "size", "mtime", "caption"]).limit(None).to_arrow()
        sizes, times = rows["size"].to_pylist(), rows["mtime"].to_pylist()
        states = zip(sizes, times, rows["caption"].is_valid().to_pylist(), strict=True)
        return dict(zip(rows["path"].to_pylist(), states, strict=True))

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add photos, or replace those of the same path, in one commit."""
        import pyarrow

        if rows:
            with _explained(self.where):
                self.table.checkout_latest()  # what others have added since is replaced, not added again
                merge = self.table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(pyarrow.Table.from_pylist(rows, schema=self.table.schema))

    def heal(self) -> None:
        """Drop photos that are there several times, as two runs at once could leave them; they are encoded anew."""
        with _explained(self.where):
            self.table.checkout_latest()
            paths = Counter(self.table.search().select(["path"]).limit(None).to_arrow()["path"].to_pylist())
        self.drop([path for path, times in paths.items() if times > 1])

    def drop(self, paths: Sequence[str]) -> None:
        """Remove photos."""
        with _explained(self.where):
            for start in range(0, len(paths), 1000):
                # Paths are anybody's; in SQL a doubled quote is the only character of a string that is not itself.
                names = ", ".join("'" + path.replace("'", "''") + "'" for path in paths[start : start + 1000])
                self.table.delete(f"path IN ({names})")

    def tune(self, exact_rows: int = EXACT_ROWS) -> float | None:
        """Merge the commits into few files and, above `exact_rows`, bring the approximate index up to date.

        Returns:
            Recall at 10 of the approximate index where it was made or extended; None otherwise.
        """
        from lancedb.index import IvfSq

        with _explained(self.where):
            large = self.table.count_rows() > max(exact_rows, 0)
            name = next((index.name for index in self.table.list_indices()), None)
            stats = self.table.index_stats(name) if name else None
            if name and not large:
                self.table.drop_index(name)
            if large and (stats is None or stats.num_unindexed_rows > stats.num_indexed_rows):  # its cells are too few
                self.table.create_index("vector", config=IvfSq(distance_type="cosine"))
            self.table.optimize(cleanup_older_than=KEPT_VERSIONS)
        return self.recall() if large and (stats is None or stats.num_unindexed_rows) else None


def open_index(where: str | os.PathLike[str]) -> Index:
    """Open an index that `vlm.search.build.build` made.

    Args:
        where: its folder, or an address of object storage that LanceDB knows (`s3://...`).

    Raises:
        DataError: there is none, or it is damaged.
        ArgumentError: LanceDB is not installed.
    """
    where = _local(where)
    if "://" not in where and not os.path.isdir(where):
        what = "is a file" if os.path.exists(where) else "does not exist"
        raise DataError(f"index {where!r} {what}; make one: vlm retrieve index PHOTOS --out INDEX")
    table = _table(where)
    if table is None:
        raise DataError(f"{where!r} holds no index; make one: vlm retrieve index PHOTOS --out INDEX")
    try:
        maker = Maker(**json.loads((table.schema.metadata or {})[_MADE_BY]))
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"index {where!r} does not say which model made it, so it is damaged or another program's; "
            "index into another folder"
        ) from None
    return Index(where, table, maker)


def check_place(where: str | os.PathLike[str]) -> str:
    """An address where an index is or may be made, with the home folder written out.

    Raises:
        ArgumentError: it holds something else.
    """
    where = _local(where)
    if os.path.isfile(where):
        raise ArgumentError(f"{where!r} is a file; name a folder for the index")
    if os.path.isdir(where) and {name for name in os.listdir(where) if name[0] != "."} - {f"{_TABLE}.lance"}:
        raise ArgumentError(f"{where!r} is a folder with other files in it, not an index; name another folder")
    return where


def open_or_create(where: str | os.PathLike[str], encoders: Encoders) -> Index:
    """The index at `where` after a check that `encoders` made it; a new, empty one where there is none.

    Raises:
        ModelError: another model made the index.
        ArgumentError: `where` holds something else, or LanceDB is not installed.
        DataError: the index is damaged.
    """
    where = check_place(where)
    if _table(where) is not None:
        index = open_index(where)
        index.check(encoders)
        return index
    import lancedb
    import pyarrow

    maker = maker_of(encoders)
    schema = pyarrow.schema(
        [
            pyarrow.field("path", pyarrow.string(), nullable=False),
            pyarrow.field("size", pyarrow.int64(), nullable=False),
            pyarrow.field("mtime", pyarrow.int64(), nullable=False),  # nanoseconds since 1970
            pyarrow.field("vector", pyarrow.list_(pyarrow.float32(), maker.dim), nullable=False),
            pyarrow.field("caption", pyarrow.string()),
        ],
        metadata={_MADE_BY: json.dumps(vars(maker))},
    )
    with _explained(where):
        return Index(where, lancedb.connect(where).create_table(_TABLE, schema=schema), maker)


@torch.no_grad()
def query_vector(
    encoders: Encoders, text: str | None = None, *, images: Sequence[ImageSource] = (), minus: Sequence[str] = ()
) -> Tensor:
    """The sum of the vectors of a sentence and of photos, less those of `minus`: `float32[dim]` of unit length.

    Raises:
        ArgumentError: there is nothing to search for, or it cancels out.
        ImageError: a photo cannot be used.
    """
    check_list("minus", minus)
    check_photos(images)
    texts = [*([] if text is None else [text]), *minus]
    if text is None and not images:
        raise ArgumentError("there is nothing to search for; give a sentence or a photo")
    for words in texts:
        if not check_unicode(words).strip():
            raise ArgumentError(f"the query {words!r} is empty; say what to search for")
    parts = []
    if texts:
        if unknown := [words for words in texts if not encoders.knows(words)]:
            warnings.warn(
                f"{encoders.name!r} knows no part of the query {unknown[0][:40]!r}, so that all such queries find the "
                "same; write it in another script or language",
                stacklevel=2,
            )
        vectors = encoders.encode_text(texts).float()
        parts += [vectors[:1].sum(0) - vectors[1:].sum(0) if text is not None else -vectors.sum(0)]
    if images:
        parts += [encoders.encode_image(images).float().sum(0)]
    total = torch.stack(parts).sum(0)
    if total.norm() < 1e-4:
        raise ArgumentError("the query cancels itself out; what is subtracted equals what is searched for")
    return nn.functional.normalize(total, dim=0).cpu()


def maker_of(encoders: Encoders) -> Maker:
    """What an index of these encoders says of its model."""
    return Maker(encoders.name, encoders.weights_sha256(), encoders.dim)


def _local(where: str | os.PathLike[str]) -> str:
    """An address as it is, a folder with the home folder written out."""
    text = os.fspath(where)
    return text if "://" in text else os.path.expanduser(text)


def _table(where: str) -> Any:
    """The table at `where`; None where there is none, or one whose creation was cut short."""
    try:
        import lancedb
    except ModuleNotFoundError:
        raise ArgumentError("an index needs LanceDB; install it: pip install 'vlm-foundation[retrieval]'") from None
    if "://" not in where and not os.path.isdir(where):
        return None  # connecting would make the folder
    with _explained(where):
        try:
            return lancedb.connect(where).open_table(_TABLE)
        except (ValueError, FileNotFoundError) as error:
            if "not found" in str(error):
                return None
            raise


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn whatever LanceDB raises (RuntimeError, ValueError, OSError, a panic of its Rust code) into a DataError."""
    try:
        yield
    except (VLMError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # pyo3's PanicException is no Exception
        reason = next(iter(str(error).splitlines()), type(error).__name__).partition(", /")[0][:200]
        if full := re.search(r"no space left|read-only|permission denied|quota|too large", str(error), re.IGNORECASE):
            raise DataError(
                f"index {where!r} cannot be written: {full[0].lower()}; free some space, check the permissions, or "
                "index into another folder"
            ) from error
        raise DataError(
            f"index {where!r} cannot be used ({reason}); if it is damaged, remove it and index the photos again"
        ) from error
