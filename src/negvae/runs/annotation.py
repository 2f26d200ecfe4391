"""Write scores as files that other tools show images with: FiftyOne and Label Studio.

FiftyOne reads its file with `fiftyone.Dataset.from_json("scores.json")`: a sample for each image, with the scores, the
p-value, the decision as a classification and the heat map.
Label Studio imports its file as tasks with predictions: the decision stands as a choice that a person confirms or
corrects, under the labeling configuration `CONFIGURATION`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from negvae.data.formats import IMAGE_ENDINGS
from negvae.data.stores import is_uri

FORMATS = ("fiftyone", "label-studio")
DOCUMENT_ROOT = "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"
"""Variable of Label Studio that names the folder whose files it serves, under /data/local-files/."""
CONFIGURATION = """\
<View>
  <Image name="image" value="$image"/>
  <Choices name="decision" toName="image"><Choice value="inlier"/><Choice value="outlier"/></Choices>
</View>
"""
"""Labeling configuration of a project in Label Studio that the predictions fit."""
_COLUMNS = {"path", "index", "p_value", "is_outlier", "heatmap", "error"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """What the rows refer to.

    Attributes:
        model: name of the model.
        heatmaps: folder of the heat maps; None if there are none.
    """

    model: str
    heatmaps: Path | None = None


@contextmanager
def writer(form: str, handle: IO[bytes], place: Place) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """Provide a function that writes rows as they come, as one JSON document that ends with the block.

    Args:
        form: one of `FORMATS`.
        handle: where the document goes.
        place: what the rows refer to.

    Yields:
        The function, which takes tables with the columns of `negvae score` and raises ValueError for a row that is not
        an image file.
    """
    make = _sample if form == "fiftyone" else _task
    begun = False

    def write(table: pa.RecordBatch) -> None:
        nonlocal begun
        scores = [name for name in table.schema.names if name not in _COLUMNS]
        if not begun:
            handle.write((_head(scores, place) if form == "fiftyone" else "[").encode())
        for row in table.to_pylist():
            if not row["path"].lower().endswith(IMAGE_ENDINGS):
                advice = "take parquet, csv or jsonl for other rows"
                raise ValueError(f"{row['path']} is no image file, as --format {form} needs: {advice}")
            for name in scores:  # the shortest number that restores a score of single precision
                row[name] = None if row[name] is None else float(str(np.float32(row[name])))
            text = json.dumps(_plain(make(row, scores, place)), ensure_ascii=False, allow_nan=False)
            handle.write(f"{',' if begun else ''}\n{text}".encode())
            begun = True
        handle.flush()

    yield write
    handle.write(b"\n]}\n" if form == "fiftyone" else b"\n]\n")


def _head(scores: list[str], place: Place) -> str:
    """Return the beginning of a FiftyOne document: it reads no field of a sample that is not declared here."""
    fields = {**dict.fromkeys([*scores, "p_value"], "FloatField"), "error": "StringField"}
    declared = {name: f"fiftyone.core.fields.{kind}" for name, kind in fields.items()}
    labels = {"decision": "Classification"} | ({} if place.heatmaps is None else {"heatmap": "Heatmap"})
    for name, kind in labels.items():
        declared[name] = f"fiftyone.core.fields.EmbeddedDocumentField(fiftyone.core.labels.{kind})"
    named = re.search("[A-Za-z0-9]", place.model)  # FiftyOne takes no name for a dataset that has none of these
    document = {
        "name": place.model if named else f"negvae {place.model}",
        "media_type": "image",
        "sample_fields": declared,
    }
    return json.dumps(document, ensure_ascii=False)[:-1] + ', "samples": ['


def _sample(row: Row, scores: list[str], place: Place) -> Row:
    """Return a sample of FiftyOne; one that could not be scored has the tag "error"."""
    path = row["path"] if is_uri(row["path"]) else os.path.abspath(row["path"])
    sample: Row = {"filepath": path, "_media_type": "image", "tags": []}
    sample |= {name: row[name] for name in (*scores, "p_value", "error")}
    if row["error"] is not None:
        sample["tags"] = ["error"]
    if row["is_outlier"] is not None:
        sample["decision"] = {"_cls": "Classification", "label": _decision(row)}
    if place.heatmaps is not None and row.get("heatmap") is not None:
        path = os.path.abspath(place.heatmaps / row["heatmap"])
        sample["heatmap"] = {"_cls": "Heatmap", "map_path": path, "range": [0, 255]}
    return sample


def _task(row: Row, scores: list[str], place: Place) -> Row:
    """Return a task of Label Studio; a prediction's score, to sort by, is 1 minus the p-value of the image."""
    data = {"image": _served(row["path"]), "path": row["path"]}
    data |= {name: row[name] for name in (*scores, "p_value", "error")}
    if row["is_outlier"] is None:
        return {"data": data}
    choice = {"from_name": "decision", "to_name": "image", "type": "choices", "value": {"choices": [_decision(row)]}}
    prediction = {"model_version": place.model, "score": 1 - row["p_value"], "result": [choice]}
    return {"data": data, "predictions": [prediction]}


def _served(path: str) -> str:
    """Return the address under which Label Studio serves a file of its own machine; it opens stores by their URIs."""
    if is_uri(path):
        return path
    absolute = Path(os.path.abspath(path))
    root = Path(os.path.abspath(os.environ.get(DOCUMENT_ROOT) or absolute.anchor))
    try:
        inside = absolute.relative_to(root)
    except ValueError:
        raise ValueError(f"{path} is not below {DOCUMENT_ROOT}={root}, so Label Studio does not serve it") from None
    return f"/data/local-files/?d={quote(inside.as_posix())}"


def _decision(row: Row) -> str:
    return "outlier" if row["is_outlier"] else "inlier"


def _plain(value: Any) -> Any:
    """Return the value without numbers that JSON has none for, which become null."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
