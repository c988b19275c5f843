"""Every committed picture of the documentation is what its script draws."""

import importlib.util

import pytest

from support.paths import ROOT

PICTURES = ROOT / "docs" / "pictures"
SCRIPTS = sorted(path for path in PICTURES.glob("*.py") if path.stem != "drawing")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_script_draws_the_committed_picture(script, monkeypatch):
    monkeypatch.syspath_prepend(PICTURES)
    spec = importlib.util.spec_from_file_location(f"picture_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    committed = script.with_suffix(".svg").read_text(encoding="utf-8")
    assert module.picture() == committed, f"run python docs/pictures/{script.name}"


def test_every_picture_has_a_script():
    assert SCRIPTS and {path.stem for path in PICTURES.glob("*.svg")} == {path.stem for path in SCRIPTS}
