"""Launch on several hosts: what the environment says, and two real processes that meet."""

import os
import subprocess
import sys
import threading

import pytest

from rstar_jax.job import hosts
from rstar_jax.job.leases import dealt
from rstar_jax.settings.errors import UserError
from tests.parallel import processes

OWN = {
    'JAX_COORDINATOR_ADDRESS': 'localhost:1',
    'JAX_NUM_PROCESSES': '2',
    'JAX_PROCESS_ID': '1',
}


@pytest.mark.parametrize(
    ('environment', 'arguments'),
    [
        ({}, None),
        ({'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'}, None),
        ({'SLURM_NTASKS': '2'}, None),  # an allocation, but not started by srun
        ({'SLURM_NTASKS': '2', 'SLURM_PROCID': '0'}, {}),
        ({'OMPI_COMM_WORLD_SIZE': '4'}, {}),
        ({'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, {}),
    ],
)
def test_the_environment_tells_the_launcher(environment, arguments):
    assert hosts.launch_arguments(environment) == arguments


def test_in_a_step_of_slurm_the_variables_of_jax_give_a_process_all_its_devices():
    for around in ({}, SLURM):
        assert hosts.launch_arguments(around | OWN) == {
            'coordinator_address': 'localhost:1',
            'num_processes': 2,
            'process_id': 1,
            'cluster_detection_method': 'deactivate',
        }


@pytest.mark.parametrize(('port', 'rolls'), [(1234, 1235), (65534, 65535), (65535, 65534)])
def test_the_roll_is_on_a_port_that_there_is(port, rolls):
    assert hosts._roll_port(port) == rolls


@pytest.mark.parametrize(
    ('before', 'after'),
    [
        (None, '--xla_gpu_shard_autotuning=false'),
        ('--xla_a=1', '--xla_a=1 --xla_gpu_shard_autotuning=false'),
        ('--xla_gpu_shard_autotuning=true', '--xla_gpu_shard_autotuning=true'),
    ],
)
def test_no_process_waits_for_the_kernels_that_another_one_chooses(
    monkeypatch, tmp_path, before, after
):
    monkeypatch.delenv('XLA_FLAGS', raising=False)
    if before is not None:
        monkeypatch.setenv('XLA_FLAGS', before)
    monkeypatch.setattr(hosts, 'GPUS', tmp_path / 'none')
    hosts._tune_alone()
    assert os.environ.get('XLA_FLAGS') == before
    monkeypatch.setattr(hosts, 'GPUS', tmp_path)
    hosts._tune_alone()
    assert os.environ['XLA_FLAGS'] == after


def test_xla_knows_the_flag():
    code = 'import jax; jax.jit(lambda x: x + 1)(1); print("known")'
    flags = {'XLA_FLAGS': f'--{hosts.TUNING}=false', 'JAX_PLATFORMS': 'cpu'}
    told = subprocess.run(
        [sys.executable, '-c', code], env=os.environ | flags, capture_output=True, text=True
    )
    assert (told.returncode, told.stdout) == (0, 'known\n'), told.stderr


SLURM = {
    'SLURM_JOB_ID': '7',
    'SLURM_JOBID': '7',
    'SLURM_STEP_NODELIST': 'node[3-6]',
    'SLURM_JOB_NUM_NODES': '4',
    'SLURM_NTASKS': '4',
    'SLURM_PROCID': '2',
    'SLURM_LOCALID': '0',
}
OPEN_MPI = {
    'OMPI_MCA_orte_hnp_uri': '7.0;tcp://10.0.0.3:1',
    'OMPI_COMM_WORLD_SIZE': '4',
    'OMPI_COMM_WORLD_RANK': '2',
    'OMPI_COMM_WORLD_LOCAL_RANK': '0',
}


@pytest.mark.parametrize(
    ('environment', 'host', 'alone'),
    [
        (SLURM | {'SLURM_STEP_TASKS_PER_NODE': '1(x4)'}, 'node3', True),
        (SLURM | {'SLURM_STEP_TASKS_PER_NODE': '2(x2)'}, 'node3', False),
        (OPEN_MPI | {'OMPI_COMM_WORLD_LOCAL_SIZE': '1'}, '10.0.0.3', True),
        (OPEN_MPI | {'OMPI_COMM_WORLD_LOCAL_SIZE': '4'}, '10.0.0.3', False),
    ],
)
def test_a_process_alone_on_its_host_has_all_devices(monkeypatch, environment, host, alone):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hosts.launch_arguments(environment) == {}
    found = hosts._found_by_jax(environment, 5.0)
    assert found.pop('coordinator_address').rpartition(':')[0] == host
    devices = {'cluster_detection_method': 'deactivate'} if alone else {'local_device_ids': [0]}
    assert found == {'num_processes': 4, 'process_id': 2, **devices}


@pytest.mark.parametrize(
    ('change', 'argument'),
    [
        ({'JAX_PROCESS_ID': ''}, 'JAX_PROCESS_ID'),
        ({'JAX_PROCESS_ID': '2'}, 'JAX_PROCESS_ID'),
        ({'JAX_NUM_PROCESSES': 'two'}, 'JAX_NUM_PROCESSES, JAX_PROCESS_ID'),
    ],
)
def test_a_half_set_environment_is_a_user_error(change, argument):
    with pytest.raises(UserError) as half:
        hosts.launch_arguments({**OWN, **change})
    assert half.value.argument == argument


def test_a_host_of_a_slice_that_lacks_jax_s_part_for_tpus_is_told():
    with pytest.raises(UserError) as alone:
        hosts.initialise({'TPU_WORKER_HOSTNAMES': 'a,b'}, 1.0)
    assert 'jax[tpu]' in alone.value.remedy


@pytest.mark.parametrize(('code', 'own'), [(2, 2), (1, 1), (hosts.GONE, 1)])
def test_a_process_ends_as_the_one_does_that_ends_the_job(monkeypatch, capsys, code, own):
    """A job that is started again unless all that ends is a mistake (2) is not started for it."""
    left = []
    monkeypatch.setattr(hosts, 'leave', left.append)
    monkeypatch.setattr(hosts, 'GRACE', 0.0)
    monkeypatch.setattr(hosts, '_lost', threading.Event())
    hosts._when_lost(0, 'process 0 (a) has ended', code)
    assert left == [own]
    assert capsys.readouterr().err.startswith('error: process 0 (a) has ended: the job ends; run')


def test_one_host_has_all_the_work():
    hosts.initialise({})
    hosts.barrier('alone')
    assert hosts.is_first()
    assert list(dealt('abc', 'letters')) == [['a', 'b', 'c']]
    assert hosts.greatest(3) == 3


PROGRAM = """
import jax
from rstar_jax import parallel
from rstar_jax.job import hosts
from rstar_jax.job.leases import dealt
hosts.initialise()
mesh = parallel.global_mesh()
hosts.barrier('start')
mine = [i for lease in dealt(range(50), 'b') for i in lease]
print('took', *mine)
print(jax.process_index(), len(jax.devices()), parallel.local_mesh().devices.shape,
      mesh.devices.shape, list(dealt(range(5), 'a', 'static')), hosts.is_first(),
      hosts.greatest(5 - jax.process_index()), hosts.sharing_cores())
hosts.barrier('end')
"""


def test_two_processes_meet_and_share():
    outputs = processes.run([sys.executable, '-c', PROGRAM], 2, 2)
    # Lines of the libraries may come before and after.
    assert '0 4 (2, 1) (1, 4, 1) [[0], [2], [4]] True 5 2' in outputs[0].splitlines()
    assert '1 4 (2, 1) (1, 4, 1) [[1], [3]] False 5 2' in outputs[1].splitlines()
    took = [line.split()[1:] for out in outputs for line in out.splitlines() if 'took' in line]
    assert sorted(int(i) for mine in took for i in mine) == list(range(50))
