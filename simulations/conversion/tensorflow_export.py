"""Models of Keras and TensorFlow → ONNX, by those libraries, in a process of their own.

They are never imported here: their dependencies may disagree with ours, so they may be installed
for another Python.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fedgraft.common.errors import UserError

KERAS = (".keras", ".h5")
# seconds
LONGEST = 1800
KERAS_PROGRAM = """\
import runpy, sys, keras
source, target = sys.argv[1:]
model = keras.saving.load_model(source, compile=False)
if keras.backend.backend() == "tensorflow":
    # the straight way makes inputs of some constants
    model.export(target + ".saved", verbose=False)
    sys.argv = ["", "--saved-model", target + ".saved", "--output", target, "--opset", "17"]
    runpy.run_module("tf2onnx.convert", run_name="__main__")
else:
    model(keras.ops.zeros([1] + [size or 224 for size in model.input_shape[1:]]))
    model.export(target, format="onnx")
"""
# the libraries that a model needs, as pip calls them
PACKAGES = {"keras": "keras tensorflow tf2onnx", "tensorflow": "tensorflow tf2onnx"}


def is_of_tensorflow(model: Path) -> bool:
    """Whether a path is a Keras model, or the folder of a SavedModel."""
    return model.suffix.lower() in KERAS or model.is_dir()


def export_to_onnx(model: Path, out: Path, python: str | None) -> Path:
    """Write a model as ONNX and return the file.

    Args:
        python: that the library is installed for; None: this one.

    Raises:
        UserError: the model is not there, the library is not, or it cannot export it.
    """
    if not model.exists():
        remedy = "give a .onnx or .keras file, or a SavedModel's folder"
        raise UserError("there is no such model", where=str(model), remedy=remedy)
    if model.is_dir() and not (model / "saved_model.pb").is_file():
        what = "a folder without saved_model.pb"
        raise UserError(what, where=str(model), remedy="give the folder of a SavedModel")
    interpreter = python or sys.executable
    library = "tensorflow" if model.is_dir() else "keras"
    command = list_command(interpreter, model, out)
    if not _has(interpreter, library):
        raise _not_installed(model, library, interpreter)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        what = f"{library} did not export the model ({type(error).__name__})"
        raise UserError(what, where=str(model), remedy=_by_hand(model)) from error
    if done.returncode or not out.is_file():
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        what = f"{library} could not export the model; it said: {said[-1][:300]}"
        raise UserError(what, where=str(model), remedy=_by_hand(model))
    return out


def list_command(interpreter: str, model: Path, out: Path) -> list[str]:
    """Return the command that writes a model as ONNX."""
    if model.is_dir():
        saved = ["--saved-model", str(model), "--output", str(out), "--opset", "17"]
        return [interpreter, "-m", "tf2onnx.convert", *saved]
    return [interpreter, "-c", KERAS_PROGRAM, str(model), str(out)]


def _has(interpreter: str, library: str) -> bool:
    """Whether a library is installed for a Python; it is not imported."""
    program = f"import importlib.util as u, sys; sys.exit(u.find_spec({library!r}) is None)"
    try:
        return subprocess.run([interpreter, "-c", program], check=False).returncode == 0
    except OSError as error:
        what = f"{interpreter} is no Python"
        raise UserError(what, where="--python", remedy="give its path") from error


def _not_installed(model: Path, library: str, interpreter: str) -> UserError:
    what = f"{library} is not installed for {interpreter}"
    remedy = (
        "give it an environment of its own: python -m venv keras-env; keras-env/bin/pip install"
        f" {PACKAGES[library]}; and add --python keras-env/bin/python. Or export the model where it"
        f" is installed, and convert model.onnx: {_by_hand(model)}"
    )
    return UserError(what, where=str(model), remedy=remedy)


def _by_hand(model: Path) -> str:
    """Return the command that exports a model, for people."""
    if model.is_dir():
        return f"python -m tf2onnx.convert --saved-model {model} --output model.onnx --opset 17"
    return (
        f"python -c \"import keras; keras.saving.load_model('{model}', compile=False)"
        ".export('saved')\" and python -m tf2onnx.convert --saved-model saved --output model.onnx"
        " --opset 17"
    )
