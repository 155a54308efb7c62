"""One self-contained page about several runs on the same images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covidjax import files
from covidjax.report import page

SUFFIX = ".html"


def write(path: Path, result: Mapping[str, Any]) -> Path:
    """Writes the page. result: of `runs.compare.compare`. Raises UserError where it cannot be written."""
    titles = result["titles"]
    pairs = [
        {**each, "pair": f"{each['first']} \N{MINUS SIGN} {each['second']}", "title": titles[each["figure"]]}
        for each in result["comparisons"]
    ]
    by_figure = {title: [pair for pair in pairs if pair["title"] == title] for title in titles.values()}
    content = page.render(
        "compare.html",
        title=f"{len(result['runs'])} runs compared",
        sections={"figures": "Figures and cost", "pairs": "Pairs", "methods": "Methods"},
        result=result,
        by_figure={title: found for title, found in by_figure.items() if found},
    )
    files.write_text(path, content)
    return path
