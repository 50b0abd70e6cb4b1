"""report.html: one self-contained page about a run, for people. Opens without a network; prints."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

from common.accounting import shown
from common.errors import UserError
from simulations.table import COLUMNS, rows_of, sayings, size, spread

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1c2430; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid #d8dee6 }
th:first-child, td:first-child { text-align: left } .first tbody tr:first-child { font-weight: 600 }
.wide { overflow-x: auto } img { max-width: 100% } code { overflow-wrap: anywhere }
.quiet { color: #5a6675 } ul { padding-left: 1.2rem }
@media print { body { margin: 0; font-size: 11pt } h2 { break-after: avoid } img, table { break-inside: avoid } }
"""


def write_report(run: Path) -> Path:
    """Write `report.html` into a run's folder.

    Raises:
        UserError: the folder holds no finished run.
    """
    try:
        result = json.loads((run / "result.json").read_text())
        plan_text = (run / "plan.yaml").read_text()
        if "seeds" in result:
            raise KeyError("seeds")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            "holds no run", where=str(run), remedy="give the folder of one run, such as runs/NAME-TIME/seed-7"
        ) from error
    page = run / "report.html"
    part = page.with_suffix(".part")
    part.write_text(_page(result, plan_text, run), encoding="utf-8")
    part.replace(page)
    return page


def _page(result: dict[str, Any], plan_text: str, run: Path) -> str:
    spent = result["bytes"]
    everything = "".join(f"<li>{html.escape(line)}</li>" for line in sayings([result]))
    sections = [
        f"<h1>{html.escape(result['name'])}</h1>",
        f"<p class=quiet>{html.escape(result['status'])}: {result['rounds_done']} rounds, seed {result['seed']}, "
        f"{result['seconds'].get('total', 0):.1f} s</p>",
        "<h2>How good is the shared model?</h2>",
        f"<div class=first>{_table(['model', *(head for _, head in COLUMNS), 'sent'], _model_rows(result))}</div>",
        f"<ul>{everything}</ul>",
        _picture(_rounds_picture(run), "Accuracy of the shared model at the nodes, round by round"),
        "<h2>At each node</h2>",
        _table(
            ["node", "test examples", *(head for _, head in COLUMNS)],
            [
                [name, str(row["examples"]), *(spread([row.get(key)]) for key, _ in COLUMNS)]
                for name, row in sorted(result["final"]["nodes"].items())
            ],
        ),
        _picture(_read(run / "labels_by_node.png"), "Training examples of each class at each node"),
        "<h2>What left each node</h2>",
        f"<p>{result['adapter']['tensors']} tensors of a {html.escape(result['adapter']['method'])} adapter, "
        f"{size(spent['adapter'])} a round, and sums of its metrics. The backbone ({size(spent['backbone'])}) "
        f"travelled to {spent['handout']['nodes']} nodes once; it is "
        f"<code>{html.escape(result['backbone']['fingerprint_before'])}</code> before and "
        f"<code>{html.escape(str(result['backbone']['fingerprint_after']))}</code> after the run.</p>",
        "<h2>Privacy</h2>",
        *_privacy(result),
        "<h2>How to repeat it</h2>",
        f"<p>Plan <code>{html.escape(result['plan_hash'])}</code>, with "
        f"{', '.join(html.escape(f'{name} {number}') for name, number in result['versions'].items())}:</p>"
        f"<details><summary>plan.yaml</summary><pre>{html.escape(plan_text)}</pre></details>",
    ]
    title = html.escape(result["name"])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8>"
        f"<meta name=viewport content='width=device-width, initial-scale=1'><title>{title}</title>"
        f"<style>{STYLE}</style><body>{''.join(sections)}</body></html>\n"
    )


def _privacy(result: dict[str, Any]) -> list[str]:
    """ε of each node with its unit, neighbours, δ and accountant; then what it does not cover."""
    spent = result["privacy"]
    if not result["not_covered_by_epsilon"]:
        return ["<p>No differential privacy was asked for: the updates may reveal training data.</p>"]
    head = ["node", "ε at most", "δ", "unit", "neighbours", "accountant", "noise × norm, sample rate, steps"]
    rows = [
        [
            name,
            shown(entry["epsilon"]),
            f"{entry['delta']:g}",
            entry["unit"],
            entry.get("neighbours", ""),
            entry["accountant"],
            "; ".join(f"{sigma:g}, {rate:.4g}, {steps}" for sigma, rate, steps in entry["history"]),
        ]
        for name, entry in sorted(spent.items())
    ]
    listed = "".join(f"<li>{html.escape(line)}</li>" for line in result["not_covered_by_epsilon"])
    return [_table(head, rows), f"<p>Not covered by ε:</p><ul>{listed}</ul>"]


def _model_rows(result: dict[str, Any]) -> list[list[str]]:
    return [
        [name, *(spread([row.get(key) for row in found]) for key, _ in COLUMNS), size(spent[0]) if spent else "–"]
        for name, found, spent in rows_of([result])
    ]


def _table(head: list[str], rows: list[list[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def _picture(png: bytes | None, words: str) -> str:
    if png is None:
        return ""
    data = base64.b64encode(png).decode()
    said = html.escape(words)
    image = f"<img alt='{said}' src='data:image/png;base64,{data}'>"
    return f"<figure>{image}<figcaption class=quiet>{said}</figcaption></figure>"


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _rounds_picture(run: Path) -> bytes | None:
    """Accuracy by round: every node in grey, all of them together in colour, from metrics.jsonl."""
    from simulations.figures import accuracy_by_round

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    by_node: dict[str, list[tuple[int, float, int]]] = {}
    for line in lines:
        row, after = (line["final"], line["round"]) if "final" in line else (line.get("received"), line["round"] - 1)
        if row and row.get("accuracy") is not None:
            by_node.setdefault(line["node"], []).append((after, row["accuracy"], row["examples"]))
    return accuracy_by_round(by_node) if by_node else None
