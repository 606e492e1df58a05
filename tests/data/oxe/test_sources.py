"""Where the 27 are to be had: the commands put them where they are found, and the document says what the code says."""

import functools
import http.server
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from whale_jax.data.oxe import sources
from whale_jax.data.oxe.recipes import RECIPES
from whale_jax.data.rlds import INFO
from whale_jax.data.rlds.read import find

DOCUMENT = Path(__file__).parents[3] / "docs/oxe.md"
# Does what `gsutil -m rsync -r` does: copies into a directory that exists.
GSUTIL = """#!/bin/sh
test "$1 $2 $3 $#" = "-m rsync -r 5" && cp -r "$BUCKET/${4#gs://gresearch/robotics/}/." "$5/"
"""


def found(root, name):
    return find(root, RECIPES[name].builders, RECIPES[name].versions)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A local bucket with a gsutil that copies from it; wget copies nothing."""
    for origin in sources.ORIGINS.values():
        if not origin.url:
            path = tmp_path / "bucket" / origin.place
            path.mkdir(parents=True)
            (path / INFO).write_text("{}")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool, text in (("gsutil", GSUTIL), ("wget", "#!/bin/sh\n")):
        (tools / tool).write_text(text)
        (tools / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("BUCKET", str(tmp_path / "bucket"))


def test_every_data_set_has_an_origin_of_a_version_that_is_read():
    assert list(sources.ORIGINS) == list(RECIPES)
    for name, origin in sources.ORIGINS.items():
        builder, version = origin.place.split("/")
        assert builder in RECIPES[name].builders and version in RECIPES[name].versions


def test_each_command_copies_to_where_the_data_set_is_found(bucket, tmp_path):
    root = tmp_path / "my data"
    *lines, general, bridge = sources.how_to_get([*sources.ORIGINS, "my_arm"], str(root))
    assert lines[0] == "fractal20220817_data: fractal20220817_data/0.1.0, 111 GiB" and lines[-1] == "my_arm"
    assert bridge.startswith("to copy bridge_orig: wget ")
    for line, (name, origin) in zip(lines, sources.ORIGINS.items(), strict=False):
        if origin.url:
            continue
        place = line.split(": ")[1].split(",")[0]
        command = general.partition(": ")[2].replace("PLACE", place)
        subprocess.run(["bash", "-e", "-c", command], check=True)
        assert found(root, name).path == root / origin.place


def test_the_script_copies_all_of_the_bucket(bucket, tmp_path):
    root = tmp_path / "my data"
    subprocess.run(["bash", "-e", "-c", sources.script()], check=True, env={**os.environ, "ROOT": str(root)})
    assert [name for name in RECIPES if found(root, name) is None] == ["bridge_orig"]


@pytest.mark.skipif(shutil.which("wget") is None, reason="wget is not installed")
def test_the_command_for_bridge_copies_a_web_directory_to_where_it_is_found(tmp_path):
    served = tmp_path / "served/datasets/bridge_release/data/tfds"
    for place in ("bridge_dataset/1.0.0", "another/1.0.0"):
        (served / place).mkdir(parents=True)
        (served / place / INFO).write_text("{}")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = sources.ORIGINS["bridge_orig"].command(str(tmp_path / "root"))
        command = command.replace("https://rail.eecs.berkeley.edu", f"http://localhost:{server.server_port}")
        subprocess.run(["bash", "-c", command + " --no-proxy --quiet"], check=True)
        server.shutdown()
    assert found(tmp_path / "root", "bridge_orig").path == tmp_path / "root/bridge_dataset/1.0.0"
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["bridge_dataset"]


def test_the_document_has_the_table_the_commands_and_the_sum():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert sources.table() in text
    assert sources.script() in text
    assert f"{sources.total_gib() / 1024:.2f} TiB" in text


def test_an_old_copy_of_bridge_is_told_from_bridge_orig():
    (sentence,) = sources.look_alikes(["bridge", "kuka", "bridge_dataset"])
    assert "bridge_orig is bridge_dataset/1.0.0 from https://rail.eecs.berkeley.edu" in sentence
