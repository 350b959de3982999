"""A search on a Ray cluster of real processes: one killed, one cut off, one added in the middle."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from rstar_jax import search
from rstar_jax.data.problem import Problem
from rstar_jax.search import elastic, ray_team
from rstar_jax.settings.errors import UserError
from tests.search.test_scripted import random_score, random_texts
from tests.search.test_snapshots import assert_same

ray = pytest.importorskip('ray')
cluster_utils = pytest.importorskip('ray.cluster_utils')

REPOSITORY = pathlib.Path(__file__).parents[2]
CONFIG = search.Config(rollouts=8, candidates=4, max_depth=4, error_threshold=2, workers=1)
PROBLEMS = [Problem(i, f'q{i}', str(i % 3)) for i in range(40)]
LATE = 20
HERE, THERE = '10.177.0.1', '10.177.0.2'  # of the host, and of the namespace


@dataclasses.dataclass(frozen=True)
class Job:
    """A search without models, slow enough to be disturbed; from problem LATE on it waits."""

    seconds: float
    gate: str

    def begin(self):
        return self.search, 0.5

    def search(self, share):
        def texts(*arguments):
            late = int(arguments[0].removeprefix('q')) >= LATE
            while late and not os.path.exists(self.gate):
                time.sleep(0.05)
            time.sleep(self.seconds)
            return random_texts(*arguments)

        expander = search.scripted(texts, random_score, trees=2)
        return search.run(PROBLEMS, expander=expander, config=CONFIG, share=share)


@pytest.fixture
def namespace():
    """A network namespace with a cable to this machine; None where none may be made."""

    def ip(arguments: str) -> str:
        command = ['ip', *arguments.split()]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def gone() -> None:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            for pid in ip('netns pids rstar-test').split():
                os.kill(int(pid), signal.SIGKILL)
            ip('netns del rstar-test')

    gone()  # of a test that was killed
    try:
        ip('netns add rstar-test')
        ip('link add rstar-here type veth peer name rstar-there netns rstar-test')
        ip(f'addr add {HERE}/24 dev rstar-here')
        ip('link set rstar-here up')
        ip(f'-n rstar-test addr add {THERE}/24 dev rstar-there')
        ip('-n rstar-test link set rstar-there up')
        ip('-n rstar-test link set lo up')
        yield lambda: ip('link set rstar-here down')
    except (OSError, subprocess.CalledProcessError):
        yield None
    finally:
        gone()


@pytest.fixture
def cluster(namespace, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(REPOSITORY), *sys.path]))
    monkeypatch.setenv('RAY_USAGE_STATS_ENABLED', '0')
    address = HERE if namespace else '127.0.0.1'
    made = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args=dict(num_cpus=0, node_ip_address=address, include_dashboard=False),
    )
    monkeypatch.setenv('RAY_ADDRESS', made.address)
    try:
        yield made, lambda: made.add_node(num_cpus=1, node_ip_address=address, wait=False)
    finally:
        ray.shutdown()
        made.shutdown()


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_one_killed_one_cut_off_one_added(cluster, namespace, tmp_path):
    made, add = cluster
    with search.Workers.start(CONFIG) as workers:
        expander = search.scripted(random_texts, random_score, trees=8)
        whole = search.run(
            PROBLEMS, expander=expander, config=CONFIG, share=search.Share(workers=workers)
        )
        whole = {record.key: record for record in whole}
    nodes = [add(), add()]
    away = None
    if namespace:
        command = ['ip', 'netns', 'exec', 'rstar-test', sys.executable, '-m', 'ray.scripts.scripts']
        command += ['start', f'--address={made.address}', f'--node-ip-address={THERE}']
        with (tmp_path / 'away.log').open('w') as log:
            away = subprocess.Popen([*command, '--num-cpus=1', '--block'], stdout=log, stderr=log)
    else:
        nodes.append(add())
    lines, found, gate = [], {}, tmp_path / 'go'

    def say(line: str) -> None:
        lines.append(line)
        if 'worker 4' in line:
            gate.touch()

    try:
        with contextlib.closing(ray_team.RayTeam(Job(0.02, str(gate)).begin)) as team:
            until(lambda: len([n for n in ray.nodes() if n['Resources'].get('CPU')]) == 3)
            records = elastic.run(
                [(problem, 0) for problem in PROBLEMS], team, say=say, silent=15.0
            )
            for record in records:
                assert record.key not in found
                found[record.key] = record
                if len(found) == 4:
                    made.remove_node(nodes[0], allow_graceful=False)
                    add()
                if len(found) == 8:
                    namespace() if namespace else made.remove_node(nodes[2], False)
    finally:
        if away is not None:
            away.kill()
    text = '\n'.join(lines)
    assert found.keys() == whole.keys(), text
    for key, record in found.items():
        assert_same(record, whole[key])
    assert 'worker 4' in text, text
    assert 'is gone' in text, text
    assert not namespace or 'has not answered for 15 s' in text, text


def test_without_a_cluster_the_error_is_one_line(monkeypatch, tmp_path):
    monkeypatch.delenv('RAY_ADDRESS', raising=False)
    monkeypatch.setenv('RAY_TMPDIR', str(tmp_path))
    with pytest.raises(UserError) as wrong:
        ray_team.RayTeam(Job(0.0, '').begin)
    assert 'ray start --head' in wrong.value.remedy


def test_a_worker_for_each_group_of_a_hosts_devices():
    groups = ray_team._groups
    assert groups({'Resources': {'GPU': 8.0, 'CPU': 64.0}}, 2) == [{'num_gpus': 2}] * 4
    assert groups({'Resources': {'GPU': 8.0}}, 0) == [{'num_gpus': 8}]
    assert groups({'Resources': {'TPU': 4.0, 'CPU': 8.0}}, 1) == [{'resources': {'TPU': 1}}] * 4
    assert groups({'Resources': {'CPU': 8.0}}, 0) == [{'num_cpus': 1}]
    assert groups({'Resources': {}}, 0) == []


def test_a_worker_takes_as_much_of_a_gpu_as_a_command():
    code = (
        'import os; from rstar_jax.search import ray_team; '
        'ray_team._Actor(lambda: (lambda **given: iter(()), 0.0), 1); '
        'print(os.environ["XLA_CLIENT_MEM_FRACTION"])'
    )
    unset = {k: v for k, v in os.environ.items() if not k.endswith('CLIENT_MEM_FRACTION')}
    told = subprocess.run(
        [sys.executable, '-c', code], env=unset, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert told.stdout == '0.9\n', told.stderr
