"""A comparison of runs as a JSON document: every number whole, with the difference to the reference and its tests."""

from __future__ import annotations

from typing import Any

from vfmbench.results.comparison import Cell, Comparison, Entry

_OF_A_ROW = ("value", "low", "high", "n", "settings", "reason")


def document(comparison: Comparison) -> dict[str, Any]:
    headings = [entry.heading for entry in comparison.entries]
    return {
        "title": comparison.title,
        "reference": comparison.reference,
        "notes": comparison.notes,
        "runs": [_entry(entry) for entry in comparison.entries],
        "metrics": [
            {
                "name": row.name,
                "direction": str(row.direction or ""),
                "cells": dict(zip(headings, map(_cell, row.cells), strict=True)),
            }
            for row in comparison.rows
        ],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    run = entry.run
    return {
        "heading": entry.heading,
        "status": entry.status,
        "note": entry.note,
        "hash": run.hash if run else None,
        "directory": str(run.store.directory) if run else None,
        "identity": run.identity.model_dump(mode="json") if run else None,
    }


def _cell(cell: Cell) -> dict[str, Any]:
    content: dict[str, Any] = dict.fromkeys(_OF_A_ROW) if cell.row is None else cell.row.model_dump(include=set(_OF_A_ROW))
    content["best"] = cell.best
    if cell.difference is not None:
        low, high = cell.difference.interval()
        content["to_reference"] = {
            "difference": cell.difference.value,
            "low": low,
            "high": high,
            "p_value": cell.difference.p_value,
            "p_value_corrected": cell.difference.corrected,
        }
    return content
