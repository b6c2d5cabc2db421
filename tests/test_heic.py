"""Photos of phones."""

import sys

import pytest
from PIL import Image

from vlm.errors import ImageError
from vlm.image import load_image


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_names_the_package_that_reads_it_and_is_read_where_it_is_there(tmp_path, monkeypatch, brand):
    file = tmp_path / "IMG_1.HEIC"
    file.write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(64))
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"IMG_1\.HEIC' is HEIC, which needs pillow-heif; pip install"):
        load_image(file)

    class Heif:
        """Stands for the package: whatever it is given, it opens as a red square."""

        @staticmethod
        def register_heif_opener() -> None:
            Image.OPEN["HEIF"] = (lambda file, name: Image.new("RGB", (3, 2), "red"), lambda head: True)  # pyright: ignore

    monkeypatch.setitem(sys.modules, "pillow_heif", Heif)
    assert load_image(file).size == (3, 2)
    del Image.OPEN["HEIF"]  # monkeypatch would bring it back
