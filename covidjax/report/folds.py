"""The page of a cross-validation: figures of all folds together, their spread, each fold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covidjax import files
from covidjax.report import page


def write(path: Path, result: Mapping[str, Any]) -> Path:
    """Writes the page. result: of `runs.folds.summary`, and config. Raises UserError where it cannot be written."""
    titles = result["titles"]
    rows = [{"title": title, **result["figures"][name]} for name, title in titles.items()]
    each = [
        {**row, "run": {"href": f"fold{row['fold']}/report.html", "text": f"fold {row['fold']}"}}
        for row in result["folds"]
    ]
    content = page.render(
        "folds.html",
        title=f"{page.title(result['config'])}: {result['num_folds']} folds",
        sections={"together": "Together", "folds": "Each fold", "methods": "Methods", "configuration": "Configuration"},
        result=result,
        rows=rows,
        each=each,
        fold_columns=[(title, name, "estimate") for name, title in titles.items()],
        configuration=page.config_rows(result["config"]),
    )
    files.write_text(path, content)
    return path
