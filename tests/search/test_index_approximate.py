"""The approximate index over photos: when it is made, and its recall against exact search."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from vlm.encoders import Encoders
from vlm.search.index import Index, open_index, open_or_create


def fill(where: Path, vectors: Tensor) -> Index:
    """An index that holds the vectors, each as the photo `/NUMBER.jpg`."""
    index = open_or_create(where, Encoders("none", vectors.shape[1], to_tensor))
    index.put(
        [
            {"path": f"/{number}.jpg", "size": 1, "mtime": 1, "vector": vector.numpy(), "caption": None}
            for number, vector in enumerate(vectors)
        ]
    )
    return index


def test_the_approximate_index_is_built_extended_measured_and_dropped(tmp_path):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(20, 32, generator=generator)
    vectors = centres[torch.randint(20, (3000,), generator=generator)] + torch.randn(3000, 32, generator=generator)
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    index = fill(tmp_path / "i", vectors[:2000])
    assert index.tune(exact_rows=2000) is None and not index.table.list_indices()
    recall = index.tune(exact_rows=1999)
    assert recall is not None and 0.9 < recall <= 1 and len(index.table.list_indices()) == 1

    query = vectors[7]
    truth = (vectors[:2000] @ query).topk(10)
    exact = index.nearest(query, 10, exact=True)
    assert [hit.path for hit in exact] == [f"/{number}.jpg" for number in truth.indices.tolist()]
    assert [hit.score for hit in exact] == pytest.approx(truth.values.tolist(), abs=1e-5)
    found = index.nearest(query, 10)
    assert len({hit.path for hit in found} & {hit.path for hit in exact}) >= 8
    assert found[0].score == pytest.approx(1, abs=1e-5)  # scores are exact where the choice is not

    assert index.tune(exact_rows=1999) is None  # nothing new to measure
    fill(tmp_path / "i", vectors)
    index = open_index(tmp_path / "i")
    recall = index.tune(exact_rows=1999)
    assert recall is not None and recall > 0.9
    assert index.table.index_stats(index.table.list_indices()[0].name).num_unindexed_rows == 0
    assert index.nearest(vectors[2999], 1)[0].path == "/2999.jpg"
    assert index.tune(exact_rows=3000) is None and not index.table.list_indices()


def test_recall_counts_neighbours_aside_from_the_photo_itself(tmp_path, monkeypatch):
    index = fill(tmp_path / "i", torch.nn.functional.normalize(torch.eye(5) + 0.1, dim=1))
    assert index.recall() == 1.0
    real = Index.nearest
    monkeypatch.setattr(
        Index, "nearest", lambda self, v, top, exact=False: real(self, v, top if exact else 3, exact=exact)
    )
    assert index.recall(top=4) == 0.5  # itself and two of its four neighbours


def test_few_photos_are_enough_for_an_approximate_index(tmp_path):
    for rows in (1, 2, 30):
        index = fill(tmp_path / str(rows), torch.nn.functional.normalize(torch.eye(30)[:rows] + 0.1, dim=1))
        assert index.tune(exact_rows=-1) == 1.0
    assert open_or_create(tmp_path / "0", Encoders("none", 4, to_tensor)).tune(exact_rows=-1) is None
