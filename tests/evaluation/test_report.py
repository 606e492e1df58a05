import http.server
import json
import re
import resource
import shutil
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from html.parser import HTMLParser

import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.evaluation import summary
from whale_jax.evaluation.report import films
from whale_jax.evaluation.summary import write_report
from whale_jax.evaluation.video.summary import statement, summarise

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
LOADING = {"src", "href", "xlink:href", "poster", "data", "action", "srcset", "background", "manifest"}


class Page(HTMLParser):
    """What the tests ask of a page: its elements, its text and whether its tags match."""

    void = {"meta", "link", "img", "br", "hr", "input"}

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()} closes another element"

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def shown(metrics: dict, folder, arm) -> dict:
    """The metrics with one MP4 for every task and policy, but a WebP for the first, written into the folder."""
    cells = [cell for row in metrics["video"].values() for cell in row.values()]
    (folder / "films").mkdir(parents=True)
    for index, cell in enumerate(cells):
        film = films.side_by_side(arm(index), arm(index + 0.5, 0.02), context=2)
        (folder / f"films/{index}").write_bytes(films.to_mp4(film) if index else films.to_webp(film))
        cell["film"] = {"file": f"films/{index}", "caption": f"episode {index}"}
    return metrics


@pytest.fixture(scope="module")
def report(tmp_path_factory, arm, invented):
    folder = tmp_path_factory.mktemp("report") / "made on the way"
    metrics = shown(invented(), folder, arm)
    return metrics, write_report(folder / "report.html", metrics)


def test_report_is_one_file_that_loads_nothing(report):
    _, path = report
    assert {file.name for file in path.parent.iterdir()} == {"films", "report.html"}
    text = path.read_text()
    page = Page(text)
    assert not page.open, "every element is closed"
    targets = [value for _, a in page.elements for name, value in a.items() if name in LOADING]
    assert len(targets) > 10 and all(value.startswith(("data:", "#")) for value in targets)
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert max(ids.values()) == 1, ids.most_common(3)
    assert all(value[1:] in ids for value in targets if value.startswith("#"))
    assert all(reference in ids for reference in re.findall(r"url\(#([^)]*)\)", text))
    assert not re.findall(r"url\((?!#)|@import", text)
    assert len(text) < 10e6


def test_report_shows_every_task_and_policy_with_its_film_and_speaks(report):
    metrics, path = report
    page = Page(path.read_text())
    for task, policies in metrics["video"].items():
        for policy in policies:
            assert task in page.text and policy in page.text
            label = f"{task}, {policy}: real, imagined, and imagined from other actions"
            spoken = [a for tag, a in page.elements if label in (a.get("aria-label"), a.get("alt"))]
            assert len(spoken) == 1
    tags = Counter(tag for tag, _ in page.elements)
    assert tags["video"] == 8 and tags["h1"] == 1 and tags["section"] == 4
    films_at = min(i for i, (tag, _) in enumerate(page.elements) if tag == "video")
    assert films_at < min(i for i, (_, a) in enumerate(page.elements) if a.get("class") == "chart")
    assert all(a.get("alt") or a.get("aria-label") for tag, a in page.elements if tag in ("img", "video"))
    assert all(a.get("aria-label") for tag, a in page.elements if a.get("class") == "chart")
    for word in ("tokenizer", "behaviour", "dynamics", "reward", "perplexity", "held out", "17.40"):
        assert word in page.text, word
    for word in ("metaworld", "2,728,457", "14 min 20 s", "have changed by more than 10/255"):
        assert word in page.text, word
    assert statement(metrics["video"]) in page.text


def test_summarise_averages_policies_and_gains(invented):
    metrics = invented(gain=2.0)
    summary = summarise(metrics["video"], 8)
    cells = metrics["video"]["reach"].values()
    assert summary["reach"]["moving_psnr"] == pytest.approx(sum(c["moving_psnr"][7] for c in cells) / 3)
    assert [row["gain"] for row in summary.values()] == pytest.approx([2.0, 2.5, 3.0])
    controls = {"repeat_last_frame", "wrong_actions", "reconstruction"}
    assert set(summary["reach"]) == controls | {"moving_psnr", "gain"}
    assert summarise(metrics["video"], 14)["reach"]["gain"] == pytest.approx(3.1)


def test_a_policy_is_called_unseen_only_where_it_was(invented):
    video = invented()["video"]
    for policies in video.values():
        for cell in policies.values():
            cell["split"] = "valid"
    assert statement(video).startswith("At horizon 8, on 3 policies of 3 tasks (72 held-out episodes), the model's")


def test_statement_says_whether_the_aim_is_reached_and_where_not(invented):
    good = statement(invented(gain=2.0)["video"])
    assert "At horizon 8, on 3 unseen policies of 3 tasks (72 episodes)" in good
    assert "+2.5 dB on average, +2.0 dB on the weakest task, door-close" in good
    assert "loses 2.5 dB" in good and good.endswith("is reached.")
    poor = statement(invented(gain=-0.6, wrong=0.3)["video"])
    assert "does not beat repeating" in poor and "\N{MINUS SIGN}0.6 dB on the weakest task" in poor
    assert "does not lose (+0.3 dB)" in poor
    assert "is missed on door-close (\N{MINUS SIGN}0.6 dB), reach (\N{MINUS SIGN}0.1 dB) and button" in poor


def test_missing_values_and_short_metrics_still_make_a_report(tmp_path, invented):
    metrics = invented(tasks=("reach", "still"))
    for cell in metrics["video"]["still"].values():
        cell["moving_psnr"] = cell["repeat_last_frame"]["moving_psnr"] = [None] * 14
        del cell["wrong_actions"]
    assert summarise(metrics["video"])["still"]["gain"] is None
    assert "Nothing moved in the films of still." in statement(metrics["video"])
    metrics |= {"training": {}, "run": {}, "protocol": {}}
    page = Page(write_report(tmp_path / "report.html", json.loads(json.dumps(metrics))).read_text())
    assert "no training history" in page.text and "No film of this pair." in page.text


def test_many_tasks_are_averaged_into_one_chart_a_measure(tmp_path, invented):
    metrics = invented(tasks=[f"task-{index}" for index in range(9)])
    metrics["training"] = {}
    page = Page(write_report(tmp_path / "report.html", metrics).read_text())
    assert sum(a.get("class") == "chart" for _, a in page.elements) == 3
    assert "mean of 9 tasks" in page.text


def test_names_are_text_and_never_markup(tmp_path, arm, invented):
    metrics = invented(tasks=("<script>alert(1)</script>",), policies=('"><img src=x>',))
    page = Page(write_report(tmp_path / "report.html", shown(metrics, tmp_path, arm)).read_text())
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert all(a["src"].startswith("data:") for tag, a in page.elements if tag == "img")
    assert "<script>alert(1)</script>" in page.text


def test_bad_metrics_are_refused_with_a_sentence(tmp_path, arm, invented):
    broken = invented()
    del broken["video"]["reach"]["expert-or-random"]["ssim"]
    for metrics, says in (
        (invented() | {"format": "whale-metrics/0"}, "whale-metrics/0"),
        (invented() | {"video": {}}, "nothing under video"),
        (broken, "video/reach/expert-or-random/ssim"),
    ):
        with pytest.raises(WhaleError, match=says):
            write_report(tmp_path / "report.html", metrics)
    with pytest.raises(WhaleError, match="horizons 1 to 14, not 15"):
        summarise(invented()["video"], 15)
    assert not list(tmp_path.iterdir())
    shown(broken := invented(), tmp_path, arm)
    (tmp_path / "films/1").write_bytes(b"no film")
    with pytest.raises(WhaleError, match="neither MP4"):
        write_report(tmp_path / "report.html", broken)
    assert [file.name for file in tmp_path.iterdir()] == ["films"]


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, invented):
    path = tmp_path / "report.html"
    path.write_text("the old report")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the file system refuses the 20,001st byte
    try:
        with pytest.raises(WhaleError, match="No space left to write.*untouched"):
            write_report(path, invented())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "the old report" and list(tmp_path.iterdir()) == [path]


def test_a_report_is_made_without_matplotlib(tmp_path, invented, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = Page(write_report(tmp_path / "report.html", invented()).read_text())
    assert sum(a.get("class") == "chart" for _, a in page.elements) > 9


PROBE = """<!doctype html><title>probe</title><pre id="out"></pre>
<iframe src="report.html" style="border:0;height:900px;width:%dpx"></iframe><script>
document.querySelector('iframe').onload = async event => {
  const page = event.target.contentDocument, films = [...page.querySelectorAll('video')];
  page.querySelectorAll('details').forEach(details => details.open = true);
  const knows = films.length && films[0].canPlayType('video/mp4; codecs="avc1.64001f"') !== '';
  for (let i = 0; knows && i < 60 && films.some(film => film.readyState < 2); i++)
    await new Promise(done => setTimeout(done, 100));
  const root = page.documentElement;
  document.getElementById('out').textContent = JSON.stringify({
    inner: root.clientWidth, scroll: root.scrollWidth, height: root.scrollHeight, knows: Boolean(knows),
    widest: Math.max(...films.map(film => film.getBoundingClientRect().width)),
    columns: new Set(films.map(film => Math.round(film.getBoundingClientRect().left))).size,
    decoded: films.filter(film => film.videoWidth > 0 && !film.error).length, films: films.length,
    pictures: [...page.images].every(image => image.naturalWidth > 0)});
};
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "columns"), [(400, 1), (1280, 3)])
def test_a_browser_shows_the_report_without_errors_or_sideways_scrolling(report, tmp_path, width, columns):
    shutil.copy(report[1], tmp_path / "report.html")
    (tmp_path / "probe.html").write_text(PROBE % width)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--no-proxy-server", "--enable-logging=stderr",
            "--window-size=1400,1000", "--virtual-time-budget=20000", "--dump-dom",
            f"http://127.0.0.1:{server.server_port}/probe.html",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        server.shutdown()
    assert "CONSOLE" not in done.stderr, done.stderr
    seen = json.loads(re.search(r'<pre id="out">(.*?)</pre>', done.stdout).group(1))
    assert sorted(set(asked) - {"/favicon.ico"}) == ["/probe.html", "/report.html"]
    assert abs(seen["inner"] - width) <= 20 and seen["scroll"] <= seen["inner"], seen
    assert seen["widest"] <= width and seen["columns"] == columns and seen["pictures"], seen
    assert seen["films"] == 8 and (seen["decoded"] == 8 or not seen["knows"]), seen


def test_the_report_opens_with_the_first_sentences_and_every_warning():
    sentences = [f"Sentence {i} says that 0.{i} of 90 % is more than −0.1 [−0.2, 0.0]." for i in range(20)]
    told = summary._lede(" ".join(sentences))
    shown, folded = told.split("<details>")
    assert 300 < len(shown) < 550 and sentences[0] in shown and sentences[-1] in folded
    assert re.sub("<[^>]*>|More|\n", "", told.replace("</p>", " ")).split() == " ".join(sentences).split()
    short = summary._lede("It is well. Warning: <z> says nothing. Train longer.")
    assert "<details>" not in short and "Warning: &lt;z&gt; says nothing. Train longer." in short
    warned = summary._lede(" ".join([*sentences, "Warning: it is late. It is too late."]))
    assert "Warning: it is late. It is too late." in warned.split("<details>")[0]
