"""Language models by name in the catalogue or by the path of a Hugging Face ``config.json``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from fleetsim.catalog.architecture import ACTIVATIONS, BITS_PER_VALUE, BYTES_PER_VALUE, Llm
from fleetsim.catalog.data import catalogue, locate, read_yaml
from fleetsim.catalog.hugging_face import from_hugging_face
from fleetsim.errors import DataError, Finding, nearest

__all__ = ["ACTIVATIONS", "BITS_PER_VALUE", "BYTES_PER_VALUE", "Llm", "load_llm"]


def load_llm(name_or_path: str, base_dir: str | Path = ".") -> Llm:
    """Model of the catalogue, or of a Hugging Face ``config.json``.

    Parameters
    ----------
    name_or_path : str
        A name that the catalogue has, else the path of a JSON file or of the folder that holds ``config.json``.
    base_dir : path
        What a relative path starts from.

    Raises
    ------
    DataError
        If the name is unknown, the file is not valid or lacks a key that is needed.
    """
    if name_or_path in catalogue("llm"):
        return _load_catalogued(name_or_path)
    path = Path(base_dir, name_or_path)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.is_file():
        return _load_json(path.resolve())
    hint = nearest(name_or_path, catalogue("llm"), "llms")
    hint += ". A path to a Hugging Face config.json works too"
    raise DataError(Finding(f'unknown llm "{name_or_path}"', hint=hint))


@cache
def _load_catalogued(name: str) -> Llm:
    path = locate("llm", name)
    content = read_yaml(path)
    config, source = content.get("config"), content.get("source")
    if not isinstance(config, dict) or not isinstance(source, str):
        raise DataError(Finding("expected `config` (as in config.json) and its `source`", file=str(path)))
    published = {key: int(content.get(key, {}).get("value", 0)) for key in ("parameters", "active_parameters")}
    return from_hugging_face(
        config, name, path, source, published["parameters"], published["active_parameters"] or published["parameters"]
    )


@cache
def _load_json(path: Path) -> Llm:
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(Finding(f"cannot be read: {error.strerror}", file=str(path))) from error
    except ValueError as error:
        where = {"line": error.lineno, "column": error.colno} if isinstance(error, json.JSONDecodeError) else {}
        raise DataError(Finding(f"not valid JSON: {error}", file=str(path), **where)) from error  # type: ignore[arg-type]
    if not isinstance(config, dict):
        raise DataError(Finding("expected the object of a Hugging Face config.json", file=str(path)))
    name = str(config.get("_name_or_path") or path.parent.name or path.stem)
    return from_hugging_face(config, name, path, str(path))
