"""A signal, such as Ctrl-C, reaches a process that has run engines; it is not the end of it."""

import subprocess
import sys

import pytest

from tests.tiny import CONV_BN

SCRIPT = """
import os, signal, sys
import numpy as np
from fewbits.engines.engine import EngineSettings, get
feeds = {"image": np.zeros((1, 3, 8, 8), np.float32)}
for _ in range(3):
    session = get(sys.argv[2]).compile(sys.argv[1], EngineSettings(sys.argv[2], "f32", 1))
    session.run(feeds)
del session
caught = []
signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
for _ in range(3):
    os.kill(os.getpid(), signal.SIGINT)
print(len(caught))
"""


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_signals_after_sessions_have_come_and_gone(tmp_path, engine):
    path = CONV_BN.save(tmp_path / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), engine], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
