import dataclasses
import json
import signal
import subprocess

import numpy as np
import pytest
import tiny

from whale_jax.base.files import locked
from whale_jax.control.checks import recordings
from whale_jax.control.policy import load_policy
from whale_jax.control.run import Job
from whale_jax.control.study import control_settings
from whale_jax.control.tables import across, summary, to_text
from whale_jax.control.weights import weight_of
from whale_jax.data.store.storage import episode_file, rebuild_manifest, write_episode
from whale_jax.imagination.loading import load
from whale_jax.jobs.configuration import load_config, override

pytest.importorskip("metaworld")

CONFIG = f"--config={tiny.ROOT / 'tests' / 'tiny_control.py'}"


@pytest.fixture(scope="module")
def study(trained, tmp_path_factory):
    """A study that ran to its end, and what it printed."""
    workdir = tmp_path_factory.mktemp("control") / "study"
    done = tiny.whale("control", f"--checkpoint={trained[0]}", f"--workdir={workdir}", CONFIG)
    assert done.status == 0, done.err
    return workdir, done


def finals(workdir):
    return {path.parent.name: json.loads(path.read_text()) for path in workdir.glob("*/*/result.json")}


def untimed(result):
    clock = {"seconds", "trial_seconds", "updates_per_second", "imagined_steps_per_second"}
    return [{k: v for k, v in entry.items() if k not in clock} for entry in result["history"]]


@pytest.mark.slow
def test_every_run_is_tried_and_stands_in_the_tables(study, trained):
    workdir, done = study
    table = json.loads((workdir / "control.json").read_text())
    assert table["runs"] == {"finished": 8, "planned": 8}
    assert table["model"] == load(trained[0]).fingerprint
    rows = table["study"]["door-close"]
    assert set(rows) == {"entropy", "none", "offline"} and rows["none"]["seeds"] == 2
    assert rows["none"]["updates"] == [2, 4] and len(rows["none"]["success"]) == 2
    assert set(table["probe"]["door-close"]) == {"0", "5"}
    for result in finals(workdir).values():
        for entry in result["history"]:
            assert len(entry["success"]) == len(entry["return"]) == len(entry["imagined_return"]) == 2
            assert np.isfinite(entry["imagined_return"]).all()
    ends = [np.mean(finals(workdir)[f"none-{seed}"]["history"][-1]["return"]) for seed in (0, 1)]
    assert rows["none"]["end"]["return"][0] == pytest.approx(np.mean(ends))
    assert rows["none"]["gain"] == [0.0, 0.0, 0.0]
    assert (workdir / "control.png").stat().st_size > 5000 and (workdir / "probe.png").stat().st_size > 5000
    assert "8 of 8 runs" in done.out and "updates/s" in done.out and "imagined steps/s" in done.err


@pytest.mark.slow
def test_finished_runs_are_not_touched_and_other_settings_are_refused(study, trained, whale):
    workdir, _ = study
    before = tiny.files_in(workdir / "door-close")
    arguments = ("control", f"--checkpoint={trained[0]}", f"--workdir={workdir}", CONFIG)
    again = whale(*arguments)
    assert again.status == 0 and "run 1" not in again.err
    assert tiny.files_in(workdir / "door-close") == before
    other = whale(*arguments, "--config.control.learner.discount=0.5")
    assert "other settings" in other.error() and "--workdir" in other.error()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "part"), [("entropy-1", "1/2"), ("probe-5-0", "2/2")])
def test_a_killed_run_goes_on_to_the_same_end(study, trained, tmp_path, whale, name, part):
    workdir, _ = study
    arguments = ("control", f"--checkpoint={trained[0]}", f"--workdir={tmp_path / 'killed'}", CONFIG, f"--part={part}")
    changes = ("methods=entropy", "seeds=1", "probe.penalties=5.0")
    arguments += tuple(f"--config.control.{change}" for change in changes)
    process = subprocess.Popen(
        tiny.command(*arguments), cwd=tiny.ROOT, env=tiny.environment(), stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "2/4" in line:
            break
    directory = tmp_path / "killed" / "door-close" / name
    while process.poll() is None and not (directory / "state" / "2").is_dir():
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not (directory / "result.json").exists():
        assert (directory / "state" / "2").is_dir()
        other = whale(*arguments, "--config.control.learner.feature=4")
        assert "other settings" in other.error() and "--workdir" in other.error()
        with locked(directory / ".lock"):
            assert "Another process" in whale(*arguments).error()
    done = tiny.whale(*arguments)
    assert done.status == 0, done.err
    ours, theirs = finals(tmp_path / "killed")[name], finals(workdir)[name]
    assert untimed(ours) == untimed(theirs)
    where = f"door-close/{name}/policy/params"
    tiny.assert_equal_trees(tiny.read_tree(tmp_path / "killed" / where), tiny.read_tree(workdir / where))


@pytest.mark.slow
def test_parts_share_the_runs_of_one_study(study, trained, tmp_path, whale):
    names = []
    for part in ("1/2", "2/2"):
        more = ("--config.control.methods=offline", "--config.control.probe.penalties=()", f"--part={part}")
        done = whale("control", f"--checkpoint={trained[0]}", f"--workdir={tmp_path}", CONFIG, *more)
        assert done.status == 0, done.err
        names.append(set(finals(tmp_path)))
    assert names == [{"offline-0"}, {"offline-0", "offline-1"}]
    assert "2 of 2 runs" in done.out


@pytest.mark.slow
def test_a_run_with_a_share_is_that_with_its_lambda(trained, tmp_path, whale):
    changes = [("control.methods", "entropy"), ("control.seeds", "0"), ("control.probe.penalties", "()")]
    settings = control_settings(override(load_config(CONFIG.removeprefix("--config=")), changes))
    model = load(trained[0])
    weight = weight_of(model, recordings(model.open_episodes(), "door-close"), settings, "entropy", 0.5)
    found = []
    for unit, penalty in (("share", 0.5), ("lambda", weight)):
        workdir, last = tmp_path / unit, [("control.penalty_unit", unit), ("control.penalties.entropy", str(penalty))]
        flags = [f"--config.{key}={value}" for key, value in changes + last]
        done = whale("control", f"--checkpoint={trained[0]}", f"--workdir={workdir}", CONFIG, *flags)
        assert done.status == 0, done.err
        assert ("for a share of 0.5" in done.err) == (unit == "share")
        found.append(untimed(finals(workdir)["entropy-0"]))
    for entry, same in zip(*found, strict=True):
        assert entry["reward"] == pytest.approx(same["reward"], rel=1e-4)


@pytest.mark.slow
def test_a_policy_remembers_frames_until_it_is_reset(study):
    policy = load_policy(study[0] / "door-close" / "none-0")
    assert policy.tasks == ("door-close",)
    frames = np.random.default_rng(0).integers(0, 256, (3, 1, 16, 16, 3), dtype=np.uint8)
    first = policy(frames[0], None)
    policy(frames[1], None)
    later = policy(frames[0], None)
    policy.reset()
    np.testing.assert_array_equal(policy(frames[0], None), first)
    assert not np.array_equal(later, first)
    assert first.shape == (1, 4) and np.abs(first).max() <= 1


@pytest.mark.slow
def test_evaluate_ranks_what_came_out(study, trained, store, whale, tmp_path):
    runs = [str(study[0] / "door-close" / name) for name in ("none-0", "offline-1")]
    few = ("--episodes=2", "--horizon=4", f"--data={store}", f"--output={tmp_path}")
    done = whale("evaluate", f"--checkpoint={trained[0]}", "--suite=value", f"--policy={','.join(runs)}", *few)
    tasks = json.loads((tmp_path / "metrics.json").read_text())["value"]["tasks"]
    assert [tasks["door-close"]["policies"][run]["outcome"] for run in runs] == ["ok", "ok"], done.err
    assert runs[0] not in tasks["reach"]["policies"], "a policy acts in the task that it learnt"


@pytest.mark.parametrize(
    "change, told",
    [
        (("--config.control.methods=entropy,nne",), "did you mean none"),
        (("--config.control.tasks=plate-slid",), "plate-slide"),
        (("--config.control.tasks=plate-slide",), "plate-slide"),
        (("--config.control.rollout.context=9",), "context=9 is more than the 4 frames"),
        (("--config.control.generated=1.5",), "share"),
        (("--config.control.updates=5",), "no multiple"),
        (("--part=3/2",), "--part=1/2"),
        (("--config.control.methods=retracing",), "retrace at most 1"),
        (("--config.control.methods=none", "--config.control.probe.method=retracing"), "retrace at most 1"),
        (("--config.control.probe.starts=99",), "lower control.probe.starts"),
        (("--config.control.tasks=door-close,reach", "--config.control.seeds=0,0"), "none twice"),
        (("--config.control.penalties.entropy=-1",), "from 0 up"),
        (("--config.control.updates=0",), "no multiple"),
        ((f"--config={tiny.ROOT / 'configs' / 'quickstart.py'}",), "group `control`"),
        (("--checkpoint=nowhere",), "no checkpoint"),
    ],
)
def test_bad_settings_are_one_sentence(trained, tmp_path, whale, change, told):
    done = whale("control", f"--checkpoint={trained[0]}", f"--workdir={tmp_path}", CONFIG, *change)
    assert told in done.error()


def test_data_without_rewards_are_refused(trained, tmp_path, whale):
    for index in range(2):
        names = {"split": "train", "task": "door-close", "policy": "expert", "index": index}
        episode = tiny.episode(index, **names)
        episode = dataclasses.replace(episode, rewards=0 * episode.rewards)
        write_episode(tmp_path / "data" / episode_file("train", "door-close", "expert", index), episode)
    rebuild_manifest(tmp_path / "data")
    done = whale(
        "control", f"--checkpoint={trained[0]}", f"--workdir={tmp_path / 'w'}", CONFIG, f"--data={tmp_path / 'data'}"
    )
    assert "have no rewards" in done.error()


def test_intervals_are_students():
    assert across([0.5]) == [0.5, None, None]
    mean, low, high = across([0.2, 0.4, 0.6])
    assert mean == pytest.approx(0.4) and high - mean == pytest.approx(4.3027 * 0.2 / 3**0.5, rel=1e-3)
    assert mean - low == pytest.approx(high - mean)


def run_of(task, method, seed, *successes):
    """A job, and its history of trials with these successes."""
    history = [
        {"updates": n, "success": [x], "return": [1.0], "imagined_return": [1.0]} for n, x in enumerate(successes)
    ]
    return Job(f"{task}/{method}-{seed}", task, method, seed, 0.0, 0.5), history


def test_gains_are_paired_by_seed_over_the_later_half_and_averaged_over_tasks():
    found = dict(
        [
            run_of("reach", "none", 0, 1.0, 0.2, 0.4),
            run_of("reach", "none", 1, 1.0, 0.6, 0.6),
            run_of("reach", "entropy", 0, 0.0, 0.5, 0.5),
            run_of("reach", "entropy", 1, 0.0, 0.5, 0.5),
            run_of("push", "none", 0, 0.0, 0.0, 0.0),
            run_of("push", "none", 1, 0.0, 0.0, 0.0),
            run_of("push", "entropy", 1, 0.0, 0.4, 0.2),
        ]
    )
    table = summary(found, 9)
    reach, push = (table["study"][task]["entropy"] for task in ("reach", "push"))
    assert reach["gain"][0] == pytest.approx((0.2 - 0.1) / 2) and push["gain"] == pytest.approx([0.3, None, None])
    assert table["mean"]["entropy"] == pytest.approx([(-0.1 + 0.3) / 2, None, None]), "seed 1 alone has both tasks"
    assert table["mean"]["none"][0] == 0 and "mean of tasks" in to_text(table)


def test_nothing_finished_is_a_table_too():
    assert to_text({**summary({}, 3)}).startswith("0 of 3 runs")
