"""A first federation, in a minute: five hospitals adapt a backbone of the digits 0-4 to 5-9.

    python first_federation.py

Everything comes with fedgraft; nothing is downloaded. It writes into this folder.
"""

import numpy as np
from sklearn.datasets import load_digits

import fedgraft

# a small network learns the digits 0 to 4
backbone = fedgraft.pretrain("digits")
print("backbone", backbone["path"])

# five hospitals with unequal shares of the digits 5 to 9 graft LoRA adapters onto it
run = fedgraft.simulate(
    "digits",
    set={"train.rounds": 4},
    baselines=["alone", "head"],
    out="runs/first",
    progress=False,
)
print(run)
print(run.metrics[["accuracy", "auroc"]].round(3))

# the loss of local training, a row for each round and a column for each node
losses = run.rounds.pivot(index="round", columns="node", values="train_loss")
print(losses.round(2))
run.plot().savefig("rounds.png")

# the shared model at work: five images, a five to a nine
images = np.rint(load_digits().images[5:10] * 255 / 16).astype(np.uint8)
predictions = run.shared_model.predict(images[:, None])
print(predictions["class"].tolist())
