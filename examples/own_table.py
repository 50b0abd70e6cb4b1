"""Two hospitals with a table each, a plan as a mapping: your own data in thirty lines.

    python own_table.py

The tables are made here, so that the script runs as it is; put your own CSV files in their place.
"""

import csv
import random

import fedgraft

COLUMNS = ["age", "sex", "pressure", "marker"]


def write_table(name: str, patients: int, seed: int, has_marker: bool = True) -> None:
    """Write a table of made-up patients; an empty cell is a missing value."""
    draw = random.Random(seed)
    with open(name, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "ill"])
        for _ in range(patients):
            age = draw.randint(20, 90)
            sex = draw.choice("fm")
            pressure = round(draw.gauss(120 + age / 4, 12))
            marker = round(draw.gauss(1, 0.4), 2)
            risk = (age - 55) / 15 + (pressure - 134) / 15 + 2 * (marker - 1)
            ill = "yes" if draw.gauss(risk, 1) > 0 else "no"
            writer.writerow([age, sex, pressure, marker if has_marker else "", ill])


write_table("public.csv", patients=600, seed=1)
write_table("hospital-a.csv", patients=120, seed=2)
# the second hospital does not measure the marker at all
write_table("hospital-b.csv", patients=90, seed=3, has_marker=False)

plan = {
    "name": "own-table",
    "task": {
        "kind": "tabular-classification",
        "classes": ["healthy", "ill"],
        "labels": ["no", "yes"],
        "columns": COLUMNS,
        "categories": [{"column": "sex", "values": ["f", "m"]}],
        "target": "ill",
    },
    # a small network learns on public data, once
    "backbone": {"name": "mlp", "hidden": [32, 32], "weights": "public.safetensors"},
    "pretrain": {"data": "public.csv", "labels": ["no", "yes"], "epochs": 20},
    # and the hospitals adapt it
    "adapter": {"method": "lora", "rank": 4},
    "train": {"rounds": 8, "local_epochs": 2, "batch_size": 16},
    "simulation": {
        "data": ["hospital-a.csv", "hospital-b.csv"],
        "partition": {"kind": "files"},
    },
}

fedgraft.validate(plan)
fedgraft.pretrain(plan)
run = fedgraft.simulate(plan, baselines=["alone"], out="runs/own-table", progress=False)
print(run.metrics[["accuracy", "auroc"]].round(3))
print(run.nodes[["accuracy", "examples"]].round(3))

# the shared model at work on a table without labels
predictions = run.shared_model.predict("hospital-a.csv")
print(predictions.head(3).round(2))
