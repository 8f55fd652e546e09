"""``docs/api.md`` compared with the code, and the links of all pages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

import streamseg

API = (ROOT / "docs" / "api.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def api_sections() -> dict[str, tuple[str, str]]:
    """Return the signature and the text of each object in the page, by name."""
    parts = re.split(r"^### `(\w+)(.*)`$", API, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::3], zip(parts[1::3], parts[2::3], strict=True), strict=True))


def signature(function: object) -> str:
    """Return parameters and defaults, without annotations."""
    actual = inspect.signature(function)  # type: ignore[arg-type]
    parameters = [
        each.replace(annotation=inspect.Parameter.empty) for each in actual.parameters.values()
    ]
    text = str(actual.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    return text.replace("Ellipsis", "...")


def attributes() -> Iterator[tuple[str, str]]:
    """Yield the class and the attribute, with its arguments, of each row of a table."""
    for name, (_, text) in api_sections().items():
        for attribute in re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE):
            yield name, attribute


def test_every_public_name_has_a_section() -> None:
    assert set(api_sections()) == set(streamseg.__all__) - {"__version__"}


@pytest.mark.parametrize("name", [name for name, (text, _) in api_sections().items() if text])
def test_signature_is_that_of_the_code(name: str) -> None:
    assert api_sections()[name][0] == signature(getattr(streamseg, name))


@pytest.mark.parametrize(("name", "attribute"), list(attributes()))
def test_attribute_exists(name: str, attribute: str) -> None:
    owner = getattr(streamseg, name)
    method, has_arguments, arguments = attribute.partition("(")
    assert hasattr(owner, method) or method in getattr(owner, "__annotations__", {})
    if has_arguments:
        actual = signature(getattr(owner, method)).replace("(self, ", "(").replace("(self)", "()")
        assert f"({arguments}" == actual


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        file, _, anchor = target.partition("#")
        if file.startswith("http"):
            continue
        path = page if not file else page.parent / file
        if not path.exists() or (anchor and anchor not in heading_anchors(path)):
            broken.append(target)
    assert broken == []


def heading_anchors(page: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
