"""`python -m tasks.export`: its one line a file, and its errors."""

import subprocess
import sys

from tasks import export


def test_the_command(small_clip, tmp_path, capsys):
    assert export.main([f"timm:vit_tiny_patch16_224/{small_clip / 'vit.pt'}", str(tmp_path / "onnx")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'onnx' / 'image.onnx'}: onnxruntime's vectors differ by at most ")
    assert len(out.splitlines()) == 1 and err == ""
    assert export.main([f"timm:vit_tiny_patch16_224/{small_clip / 'vit.pt'}", str(tmp_path / "onnx")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == f"error: {str(tmp_path / 'onnx')!r} exists and is not an empty folder; name another\n"
    assert export.main(["no_such_model", str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err.startswith("error: no model 'no_such_model'")


def test_help_imports_nothing_heavy():
    code = "import sys, tasks.export; print([m for m in ('torch', 'timm', 'onnx', 'PIL') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
