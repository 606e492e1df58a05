"""The tests of tf.data, in a process of their own."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tensorflow") is None, reason="the extra tensorflow is not installed")
def test_batches_through_tf_data():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0"]
    file = Path(__file__).with_name("tf_data_checks.py")
    done = subprocess.run([*command, file], cwd=tiny.ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:]
