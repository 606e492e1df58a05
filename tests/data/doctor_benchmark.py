"""benchmarks/doctor.py as a module, for the tests of the action doctor."""

import importlib.util
import sys
from pathlib import Path

_PATH = Path(__file__).parents[2] / "benchmarks" / "doctor.py"
_SPEC = importlib.util.spec_from_file_location("whale_benchmarks_doctor", _PATH)
doctor = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = doctor
_SPEC.loader.exec_module(doctor)
