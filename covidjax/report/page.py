"""Self-contained pages from the templates beside this module: escaped text, formats as filters, images inside."""

import base64
import functools
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from covidjax import config as configuration
from covidjax import tasks
from covidjax.report import figures
from covidjax.report.formats import FORMATS, MISSING
from covidjax.tasks import pictures

MEDIA_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}
LEFT_ALIGNED = ("text", "code", "difference_to")


def render(template: str, **context: Any) -> str:
    """A whole HTML page that needs nothing but itself."""
    return _environment().get_template(template).render(**context)


def title(config: Mapping[str, Any]) -> str:
    """The network and the data of a config."""
    model, dataset = config.get("model", {}), config.get("dataset", {})
    root = Path(dataset.get("root", "")).name if dataset.get("name") == "folder" else ""
    return f"{model.get('name', 'unnamed model')} on {root or dataset.get('name', 'unnamed data')}"


def config_rows(config: Mapping[str, Any], left_out: Collection[str] = ()) -> list[dict[str, str]]:
    """Every key of a config, those of phases included, and its value as JSON."""

    def leaves(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for key, value in configuration.flatten(config):
            if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
                for index, part in enumerate(value):
                    yield from configuration.flatten(part, f"{key}[{index}].")
            elif key not in left_out:
                yield key, value

    return [{"key": key, "value": json.dumps(value, ensure_ascii=False)} for key, value in leaves(config)]


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader([Path(module).with_name("templates") for module in (__file__, tasks.__file__)])
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        **FORMATS,
        "shown": _shown,
        "sentence": _sentence,
        "source": _source,
        "picture": figures.picture,
        "class_color": pictures.color,
    }
    drawings = (figures.reliability_diagram, figures.threshold_curves, figures.histogram, figures.mask_pair)
    environment.globals |= {"MISSING": MISSING, "LEFT_ALIGNED": LEFT_ALIGNED}
    environment.globals |= {drawing.__name__: drawing for drawing in drawings}
    return environment


def _shown(value: Any, name: str) -> str:
    """A value in a format; a text stays as it is."""
    if isinstance(value, str) or name not in FORMATS:
        return MISSING if value is None else str(value)
    return FORMATS[name](value)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def _source(image: bytes) -> str:
    """An image as the address that holds it."""
    media_type = next((kind for start, kind in MEDIA_TYPES.items() if image.startswith(start)), "image/svg+xml")
    return f"data:{media_type};base64,{base64.b64encode(image).decode('ascii')}"
