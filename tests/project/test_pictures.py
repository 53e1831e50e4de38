"""The pictures: each is there, is shown, is made by the script, and fetches nothing."""

import re
from pathlib import Path

TOP = Path(__file__).parents[2]
PICTURES = TOP / "contrib" / "pictures"


def test_the_documents_show_all_of_them() -> None:
    """Those that they name are those that there are, and those that the script says it makes."""
    documents = (TOP / "README.md", TOP / "contrib/benchmark/README.md")
    text = "".join(document.read_text() for document in documents)
    shown = re.findall(r"!\[[^\]]+\]\([./\w]*pictures/([^)]+)\)", text)
    script = (PICTURES / "run").read_text()
    assert sorted(shown) == sorted(path.name for path in PICTURES.glob("*.svg"))
    assert all(f"{name}" in script for name in shown)


def test_they_are_small_and_fetch_nothing() -> None:
    """No font or image from elsewhere, and no more than a README should load."""
    for path in PICTURES.glob("*.svg"):
        text = path.read_text()
        assert len(text) < 150_000, path
        assert not re.search(r"@font-face|@import|url\(\s*['\"]?http|<image", text), path
