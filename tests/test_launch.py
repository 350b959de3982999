"""The launch scripts: clean by shellcheck, commands by --dry-run, their YAML by its schema."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

REPOSITORY = pathlib.Path(__file__).parents[1]
LAUNCH = REPOSITORY / 'launch'
RUN = ['--config=experiments/round3.py', '--workdir=/mnt/rstar/run with a space']


def dry(script: str, *arguments: str, **environment: str) -> str:
    """What the script prints with --dry-run; it must succeed."""
    result = start(script, '--dry-run', *arguments, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def start(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ['bash', str(LAUNCH / script), *arguments],
        env={**os.environ, 'VIRTUAL_ENV': sys.prefix, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_what_the_texts_send_to_is_there():
    texts = [*(REPOSITORY / 'rstar_jax').rglob('*.py'), *REPOSITORY.glob('experiments/*.py')]
    texts += [*LAUNCH.iterdir(), REPOSITORY / 'README.md']
    for path in texts:
        for name in re.findall(r'launch/([\w.]*\w)', path.read_text(encoding='utf-8')):
            assert (LAUNCH / name).is_file(), f'{path}: launch/{name}'


def test_shellcheck_finds_nothing():
    scripts = [*LAUNCH.glob('*.sh'), REPOSITORY / '.ci' / 'run']
    assert len(scripts) > 8
    program = pathlib.Path(sys.executable).with_name('shellcheck')
    result = subprocess.run(
        [program, '-x', *scripts], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


def test_local_processes_are_told_of_each_other():
    lines = dry('local_processes.sh', '3', *RUN, PORT='4000').splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines):
        assert f"'JAX_PROCESS_ID={number}'" in line and "'JAX_NUM_PROCESSES=3'" in line
        assert "'JAX_COORDINATOR_ADDRESS=localhost:4000'" in line
        assert line.endswith("'--workdir=/mnt/rstar/run with a space'")


def test_local_processes_end_with_the_code_of_what_they_ran():
    arguments = '2', '--config=none.py', '--workdir=w'
    result = start('local_processes.sh', *arguments, CUDA_VISIBLE_DEVICES='')
    assert result.returncode == 2
    for number in range(2):
        assert f'{number}: error: --config=none.py: no such file' in result.stdout


@pytest.mark.parametrize(
    ('script', 'arguments', 'message'),
    [
        ('local_processes.sh', ['many'], "error: 'many': expected the number of processes"),
        ('tpu_queued.sh', ['create'], 'error: NAME is not set'),
        ('tpu_xpk.sh', [], 'error: CLUSTER is not set'),
        ('gke.sh', [], 'error: NAME is not set'),
        ('ray.sh', ['none.yaml'], "error: 'none.yaml': expected a cluster file"),
    ],
)
def test_what_is_missing_is_one_line(script, arguments, message):
    result = start(script, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(message) and result.stderr.count('\n') == 1


@pytest.mark.parametrize('path', sorted(LAUNCH.glob('[a-z]*.sh')), ids=lambda path: path.name)
def test_help_is_the_head_of_the_script(path):
    if 'take_dry_run' not in path.read_text():
        return  # all arguments are passed on
    result = start(path.name, '--help')
    assert (result.returncode, result.stderr) == (0, '')
    head = [line for line in path.read_text().splitlines() if line.startswith('# ')]
    assert result.stdout.splitlines()[0] == head[0].removeprefix('# ')
    assert f'launch/{path.name}' in result.stdout
    assert not {'set -euo pipefail', '#SBATCH'} & set(result.stdout.split('\n'))


def test_without_arguments_none_are_passed_on():
    told = dry('tpu_queued.sh', 'run', NAME='pod', ZONE='z')
    assert told.rstrip().endswith("launch/tpu_host.sh '")


def test_an_active_environment_with_no_more_than_jax_is_not_used(tmp_path):
    """Whatever can be imported from the folder that the script runs in."""
    folder, active = tmp_path / 'clone', tmp_path / 'mine'
    (folder / 'rstar_jax').mkdir(parents=True)
    (folder / 'rstar_jax' / '__init__.py').touch()
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', active], check=True)
    site = active / f'lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages'
    (site / 'jax.py').touch()
    environment(folder, f'echo "$@" >>{folder}/log')
    assert used(folder, '', str(active)).rstrip().endswith(' -e .')
    (site / 'rstar_jax.py').touch()
    (folder / 'log').unlink()
    (folder / '.venv' / '.installed-').unlink()
    assert used(folder, '', str(active)) == ''


def environment(folder: pathlib.Path, script: str) -> pathlib.Path:
    """A virtual environment whose python is a script."""
    python = folder / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n{script}\n')
    python.chmod(0o755)
    return folder / '.venv'


def used(folder: pathlib.Path, extra: str, active: str = '') -> str:
    """What `use_venv` has asked python for in a folder."""
    (folder / 'setup.py').write_text('')
    result = subprocess.run(
        ['bash', '-c', f'source {LAUNCH}/_venv.sh && use_venv {extra}'],
        cwd=folder,
        env={**os.environ, 'VIRTUAL_ENV': active},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return (folder / 'log').read_text() if (folder / 'log').exists() else ''


@pytest.mark.parametrize(
    ('extra', 'installed'),
    [('', ''), ('test', '.[test]'), ('ray', '.[ray]'), ('cuda', '.[cuda]')],
)
def test_an_active_environment_is_used_where_it_has_what_is_needed(tmp_path, extra, installed):
    """It has the project alone, as after quickstart.sh."""
    made = environment(
        tmp_path,
        'case "$3" in *pytest* | *", ray"* | *jax_cuda12_plugin*) exit 1 ;; esac\n'
        f'[ "$1" = -I ] || echo "$@" >>{tmp_path}/log',
    )
    told = used(tmp_path, extra, str(made))
    assert told.rstrip().endswith(f' -e {installed}') if installed else not told


@pytest.mark.parametrize(
    ('extra', 'installed'), [('', ''), ('test', ''), ('ray', ''), ('cuda', '.[cuda]')]
)
def test_what_the_tests_need_is_no_accelerators_jax(tmp_path, extra, installed):
    made = environment(tmp_path, f'echo "$@" >>{tmp_path}/log')
    stamp = subprocess.run(['cksum'], input=b'', capture_output=True, check=True).stdout
    (made / '.installed-test').write_bytes(stamp)
    told = used(tmp_path, extra)
    assert told.rstrip().endswith(f' -e {installed}') if installed else not told


def test_slurm_runs_the_command_on_every_node():
    assert dry('slurm.sh', *RUN).split()[:4] == [
        "'srun'",
        "'--kill-on-bad-exit=0'",
        "'--wait=0'",
        "'python'",
    ]
    text = (LAUNCH / 'slurm.sh').read_text()
    assert '#SBATCH --signal=TERM@120' in text and '#SBATCH --requeue' in text


def with_commands(folder: pathlib.Path, **scripts: str) -> str:
    """PATH with commands of our own in front."""
    for name, script in scripts.items():
        file = folder / name.replace('_', '-')
        file.write_text(f'#!/bin/bash\n{script}\n')
        file.chmod(0o755)
    return f'{folder}:{os.environ["PATH"]}'


@pytest.mark.parametrize(
    'endpoints', ['10.0.0.1,10.0.0.2,10.0.0.3', 'a:1:10.0.0.1,b:2:10.0.0.2,c:3:10.0.0.3']
)
def test_hosts_of_a_tpu_slice_are_told_of_each_other_by_metadata(tmp_path, endpoints):
    curl = f'case "$*" in *worker-network-endpoints) echo -n {endpoints};; *) echo -n 2;; esac'
    line = dry('tpu_host.sh', *RUN, PATH=with_commands(tmp_path, curl=curl))
    assert "'JAX_COORDINATOR_ADDRESS=10.0.0.1:8482' 'JAX_NUM_PROCESSES=3'" in line
    assert "'JAX_PROCESS_ID=2'" in line
    assert line.rstrip().endswith("'--workdir=/mnt/rstar/run with a space'")
    result = start('tpu_host.sh', *RUN, PATH=with_commands(tmp_path, curl='exit 6'))
    assert result.returncode == 2 and 'this is for a host of a TPU slice' in result.stderr


@pytest.mark.parametrize('last', ['FAILED', 'DELETING'])
def test_a_tpu_slice_that_fails_is_not_waited_for(tmp_path, last):
    """Nor is one that is on its way called failed."""
    states = tmp_path / 'states'
    states.write_text(f'ACCEPTED\nPROVISIONING\n{last}\n')
    gcloud = f'[[ "$*" == *describe* ]] && head -1 {states} && sed -i 1d {states} || true'
    result = start(
        'tpu_queued.sh',
        'create',
        **dict(NAME='pod', ZONE='z', TYPE='v5litepod-64', RUNTIME='r', POLL_SECONDS='0'),
        PATH=with_commands(tmp_path, gcloud=gcloud),
    )
    assert result.returncode == 1
    assert result.stdout.splitlines() == [
        'waiting for pod (ACCEPTED)',
        'waiting for pod (PROVISIONING)',
    ]
    assert result.stderr == f'error: pod is {last}: delete it, then create it again\n'


def test_a_slice_that_is_there_is_not_created_again(tmp_path):
    """Created once, stopped, begun again; that it is not described now and then ends nothing."""
    states, log = tmp_path / 'states', tmp_path / 'log'
    states.write_text('none\nnone\nPROVISIONING\nnone\nACTIVE\nACTIVE\n')
    gcloud = (
        f'echo "$*" >>{log}\n'
        f'[[ "$*" == *describe* ]] || exit 0\n'
        f'state="$(head -1 {states})" && sed -i 1d {states}\n'
        '[[ "$state" != none ]] && echo "$state"'
    )
    path = with_commands(tmp_path, gcloud=gcloud, git='true')
    for waited in (['not known', 'not known', 'PROVISIONING', 'not known'], []):
        result = start(
            'tpu_queued.sh',
            'create',
            **dict(NAME='pod', ZONE='z', TYPE='v5litepod-64', RUNTIME='r', POLL_SECONDS='0'),
            PATH=path,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines() == [f'waiting for pod ({state})' for state in waited]
        assert '.venv/bin/pip install' in log.read_text().splitlines()[-1]
    assert log.read_text().count('queued-resources create pod') == 1


@pytest.mark.parametrize('gpus', [0, 2])
def test_processes_with_gpus_need_jax_for_them(tmp_path, gpus):
    made = environment(tmp_path, f'echo "$@" >>{tmp_path}/log')
    nvidia = f'for ((i = 0; i < {gpus}; i++)); do echo "GPU $i: A"; done'
    result = start(
        'local_processes.sh',
        '2',
        '--config=a.py',
        PATH=with_commands(tmp_path, nvidia_smi=nvidia),
        VIRTUAL_ENV=str(made),
    )
    assert result.returncode == 0, result.stderr
    needed, *ran = (tmp_path / 'log').read_text().splitlines()
    assert needed.startswith('-I -c import ') and ('cuda' in needed) == bool(gpus)
    assert ran == 2 * ['-m rstar_jax.main --config=a.py']


def test_processes_share_the_gpus_that_are_given(tmp_path):
    nvidia = 'for i in 0 1 2 3; do echo "GPU $i: A"; echo "  MIG 1g.5gb Device 0"; done'
    path = with_commands(tmp_path, nvidia_smi=nvidia)

    def devices(**environment):
        lines = dry(
            'local_processes.sh', '2', '--config=a.py', PATH=path, **environment
        ).splitlines()
        words = [line.split("'") for line in lines]
        return [[x[21:] for x in line if x.startswith('CUDA_VISIBLE_DEVICES=')] for line in words]

    assert devices() == [['0,1'], ['2,3']]
    assert devices(CUDA_VISIBLE_DEVICES='1,3') == [['1'], ['3']]
    assert devices(CUDA_VISIBLE_DEVICES='') == [[], []]
    assert devices(CUDA_VISIBLE_DEVICES='-1') == [[], []]
    result = start('local_processes.sh', '2', '--config=a.py', PATH=path, CUDA_VISIBLE_DEVICES='0')
    assert result.returncode == 2
    assert result.stderr == 'error: 2 processes cannot share 1 GPUs evenly\n'


def test_tpu_slices_are_made_used_and_deleted():
    slice_ = dict(NAME='pod', ZONE='z', TYPE='v5litepod-64', RUNTIME='v2-alpha-tpuv5-lite')
    lines = dry('tpu_queued.sh', 'create', '--spot', **slice_)
    assert "'create' 'pod' '--node-id=pod' '--zone=z' '--accelerator-type=v5litepod-64'" in lines
    assert "'--spot'" in lines and 'pip install' in lines
    told = dry('tpu_queued.sh', 'run', *RUN, **slice_)
    assert (
        r'launch/tpu_host.sh --config=experiments/round3.py --workdir=/mnt/rstar/run\ with' in told
    )
    assert "'delete' 'pod'" in dry('tpu_queued.sh', 'delete', **slice_)
    line = dry(
        'tpu_xpk.sh',
        *RUN,
        **dict(CLUSTER='c', WORKLOAD='w', TYPE='v5litepod-256', ZONE='z', PROJECT='p'),
    )
    assert line.startswith("'xpk' 'workload' 'create' '--cluster=c' '--workload=w'")
    assert r'--workdir=/mnt/rstar/run\ with\ a\ space' in line


@pytest.mark.parametrize(
    'kind',
    [dict(TPU='tpu-v5-lite-podslice', TOPOLOGY='8x8', HOSTS='16'), dict(GPUS='8', HOSTS='4')],
    ids=['tpu', 'gpu'],
)
def test_the_jobset_is_one_by_its_models(kind):
    """Kubeflow's models of Kubernetes' resources drop what they do not know."""
    models = pytest.importorskip('kubeflow_trainer_api.models')
    text = dry('gke.sh', *RUN, NAME='round1', IMAGE='image', CLAIM='disk', **kind)
    ours = yaml.safe_load(text)
    made = models.JobsetV1alpha2JobSet.from_dict(ours)
    assert json.loads(made.to_json()) == ours
    (job,) = ours['spec']['replicatedJobs']
    job = job['template']['spec']
    assert job['parallelism'] == job['completions'] == int(kind['HOSTS'])
    (container,) = job['template']['spec']['containers']
    assert container['args'] == RUN
    names = {variable['name'] for variable in container['env']}
    assert ('JAX_PROCESS_ID' in names) == ('GPUS' in kind)
    assert ('annotations' in ours['metadata']) == ('TPU' in kind)  # one slice, not two halves
    assert {'name': 'XDG_CACHE_HOME', 'value': '/mnt/rstar/.cache'} in container['env']
    assert container['envFrom'] == [{'secretRef': {'name': 'round1-hub', 'optional': True}}]
    mounted = {volume['name'] for volume in job['template']['spec']['volumes']}
    assert {mount['name'] for mount in container['volumeMounts']} == mounted


@pytest.mark.parametrize(
    ('found', 'done'),
    [
        ('', ['create']),
        ('round1 Completed', ['delete', 'create']),
        ('round1 StartupPolicyCompleted Failed', ['delete', 'create']),
        ('round1 ', []),
        ('round1 StartupPolicyCompleted', []),
    ],
)
def test_a_jobset_that_has_ended_makes_room_for_the_next(tmp_path, found, done):
    """Its pods cannot be changed: to apply other arguments is refused."""
    kubectl = f'[[ $1 == get ]] && echo "{found}" || echo "$*" >>{tmp_path}/log'
    result = start(
        'gke.sh',
        *RUN,
        **dict(NAME='round1', IMAGE='image', CLAIM='disk', HOSTS='4', GPUS='8', HF_TOKEN=''),
        PATH=with_commands(tmp_path, kubectl=kubectl),
    )
    log = (tmp_path / 'log').read_text().splitlines() if done else []
    assert [line.split()[0] for line in log] == done, result.stderr
    assert result.returncode == (0 if done else 2)
    ended = 'kubectl delete jobset round1 --cascade=foreground'
    assert done or (result.stderr.count('\n') == 1 and ended in result.stderr)


def test_a_token_of_the_hub_goes_into_a_secret_by_no_argument(tmp_path):
    kubectl = (
        f'[[ $1 == get ]] || echo "$*" >>{tmp_path}/log\n'
        f'[[ "$*" != *--from-env-file* ]] || cat "${{5#*=}}" >{tmp_path}/secret'
    )
    result = start(
        'gke.sh',
        *RUN,
        **dict(NAME='round1', IMAGE='image', CLAIM='disk', HOSTS='4', GPUS='8', HF_TOKEN='hf_x'),
        PATH=with_commands(tmp_path, kubectl=kubectl),
    )
    assert result.returncode == 0, result.stderr
    log = (tmp_path / 'log').read_text()
    assert [line.split()[:2] for line in log.splitlines()] == [
        ['delete', 'secret'],
        ['create', 'secret'],
        ['create', '-f'],
    ]
    assert 'hf_x' not in log and (tmp_path / 'secret').read_text() == 'HF_TOKEN=hf_x\n'


def test_the_ray_cluster_is_one_by_rays_schema():
    ray = pytest.importorskip('ray')
    jsonschema = pytest.importorskip('jsonschema')
    folder = pathlib.Path(ray.__file__).parent / 'autoscaler'
    schema = json.loads((folder / 'ray-schema.json').read_text())
    cluster = yaml.safe_load((LAUNCH / 'ray_cluster.yaml').read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, 'no_such_key': 1}, schema)
    lines = dry('ray.sh', 'launch/ray_cluster.yaml', '--config=a.py').splitlines()
    assert lines[0] == "'ray' 'up' '--yes' 'launch/ray_cluster.yaml'"
    assert '--config.job.leases=ray --stages=search --config=a.py' in lines[1]
    here = dry('ray.sh', '-', *RUN)
    assert here.startswith("'env' 'JAX_PLATFORMS=cpu' 'python'")
