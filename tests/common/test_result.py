"""result.json, typed: what is written is what was read, and an older release's file still opens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from fedgraft.common.result import FinalMetrics, Result, SeedResults, Spending, Status, Traffic

# as e7a320a wrote it for a private plan of tables, with a part of its texts
RECORDED = """{
 "schema": 1,
 "status": "completed",
 "name": "tiny",
 "plan_hash": "sha256:11c11034",
 "seed": 0,
 "versions": {
  "fedgraft": "0.1.0",
  "python": "3.11.7"
 },
 "backbone": {
  "name": "mlp",
  "fingerprint_before": "sha256:7704d438",
  "fingerprint_after": "sha256:7704d438"
 },
 "adapter": {
  "method": "lora",
  "values": 78,
  "tensors": 6
 },
 "rounds_done": 2,
 "final": {
  "global": {
   "accuracy": 0.4666666666666667,
   "auroc": null,
   "examples": 30
  },
  "nodes": {
   "north": {
    "accuracy": 0.5,
    "auroc": null,
    "examples": 30
   }
  },
  "subgroups": {
   "sex": {
    "f": {
     "accuracy": 0.5,
     "examples": 12,
     "nodes": 1
    }
   }
  }
 },
 "baselines": {
  "alone": {
   "accuracy": 0.4,
   "nodes": {}
  }
 },
 "bytes": {
  "adapter": 312,
  "full_model": 584,
  "backbone": 536,
  "handout": {
   "nodes": 3,
   "down": 17325,
   "up": 2539
  },
  "rounds": [
   {
    "round": 1,
    "nodes": 3,
    "down": 4011,
    "up": 7041
   }
  ],
  "evaluate": {
   "nodes": 3,
   "down": 4041,
   "up": 1945
  },
  "total": 36902
 },
 "encoding": {
  "kind": "none",
  "relative_error": 0.0
 },
 "privacy": {
  "north": {
   "epsilon": 3.7078866335845593,
   "delta": 1e-05,
   "unit": "patient",
   "neighbours": "one patient added or removed",
   "accountant": "prv",
   "history": [
    [
     2.0,
     0.8,
     4
    ]
   ]
  }
 },
 "not_covered_by_epsilon": [
  "that a node takes part, \\u03b5"
 ],
 "refused": [
  {
   "node": "south",
   "round": 0,
   "reason": "policy: not today"
  }
 ],
 "seconds": {
  "handout": 4.5,
  "rounds": 0.6,
  "total": 5.2,
  "evaluate": 0.03,
  "prepare": 0.07
 },
 "nodes": {
  "north": {
   "examples": 1
  }
 },
 "peak_rss_bytes": 917880832,
 "engine": "inprocess",
 "ledger": "ledgers",
 "notes": [],
 "data": {
  "labels": {
   "north": [
    16,
    16
   ]
  },
  "classes": [
   "no",
   "yes"
  ],
  "files": {},
  "fingerprints": {},
  "test_labels": {
   "north": [
    4,
    4
   ]
  }
 }
}"""


def recorded() -> Result:
    return Result.from_json(json.loads(RECORDED))


def test_a_recorded_result_is_written_as_it_was_read() -> None:
    """A key renamed, moved, dropped or invented; a whole number that becomes a float."""
    assert recorded().to_text(indent=1, allow_nan=False) == RECORDED
    assert recorded().to_json() == json.loads(RECORDED)


def test_what_was_never_set_is_not_written() -> None:
    """Keys of a simulation, or of a run's end, in the checkpoint of a deployment."""
    content = json.loads(RECORDED)
    for key in ("engine", "ledger", "notes", "data", "peak_rss_bytes", "nodes"):
        del content[key]
    del content["bytes"]["evaluate"], content["bytes"]["total"]
    result = Result.from_json(content)
    assert result.to_json() == content
    assert result.error == ""
    ended = result.but(status=Status.FAILED, error="a fault")
    assert ended.to_json() == content | {"status": "failed", "error": "a fault"}
    assert list(ended.to_json())[-1] == "error"


def test_an_older_file_without_encoding_opens_and_a_later_key_is_kept() -> None:
    """A run folder of another release that no report opens any more."""
    content: dict[str, Any] = json.loads(RECORDED)
    del content["encoding"]
    content["certificates"] = {"later": True}
    result = Result.from_json(content)
    assert result.encoding.kind == "none"
    assert result.to_json() == content


def test_what_is_no_result_is_refused() -> None:
    with pytest.raises(ValidationError):
        Result.from_json({"schema": 1, "seeds": []})


def test_nan_is_no_number() -> None:
    """A file that only Python reads."""
    final = FinalMetrics(global_={"loss": float("nan")}, nodes={})
    with pytest.raises(ValueError, match="not JSON compliant"):
        recorded().but(final=final).to_text(allow_nan=False)


def test_bytes_add_up() -> None:
    """A phase that is left out of the total."""
    assert recorded().bytes.crossed() == 36902
    both = Traffic(nodes=1, down=2, up=3).plus(Traffic(nodes=10, down=20, up=30))
    assert both == Traffic(nodes=11, down=22, up=33)


def test_several_seeds_and_what_was_spent() -> None:
    """Runs of several seeds that are not those of one; a budget in another form than a node's."""
    seeds = SeedResults(schema_=1, seeds=(recorded(), recorded()))
    assert seeds.to_json() == {"schema": 1, "seeds": [json.loads(RECORDED)] * 2}
    spending = recorded().privacy["north"]
    assert Spending.model_validate(spending.to_json()) == spending
