"""A report as JSON text, equal in every number: what JSON does not know becomes `{"non_finite": "nan"}`."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from featherweight.errors import ConfigError
from featherweight.report.sections import KINDS, Section


def to_json(title: str, sections: Sequence[Section]) -> str:
    """Return the text of a report."""
    content = [{"kind": section.kind, **asdict(section)} for section in sections]
    return json.dumps(_encode({"title": title, "sections": content}), ensure_ascii=False, allow_nan=False)


def from_json(text: str) -> tuple[str, list[Section]]:
    """Return title and sections of the text of a report.

    Raises:
        ConfigError: if the text is no JSON or no report.
    """
    try:
        content = _decode(json.loads(text))
        sections: list[Section] = []
        for values in content["sections"]:
            section = dict(values)
            sections.append(KINDS[section.pop("kind")](**section))
        return content["title"], sections
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"Report: text={text[:40]!r} holds no report ({type(error).__name__}: {error}); "
            "expected what Report.to_json wrote. Write it anew."
        ) from error


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"non_finite": str(value)}
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    return [_encode(item) for item in value] if isinstance(value, list | tuple) else value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"non_finite"} and value["non_finite"] in ("nan", "inf", "-inf"):
            return float(value["non_finite"])
        return {key: _decode(item) for key, item in value.items()}
    return [_decode(item) for item in value] if isinstance(value, list) else value
