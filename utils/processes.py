"""Devices and processes: the CPU, one GPU, or one DistributedDataParallel process per GPU."""

import ctypes
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.rendezvous import rendezvous
from torch.distributed.run import main as torchrun

from utils.settings import SettingsError


@dataclass(frozen=True)
class Process:
    """One training process.

    Attributes:
        device: where it computes.
        rank, world_size: which process it is, of how many.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def launch_processes(gpu: str, after_ctrl_c: int) -> bool:
    """Start this script again once per GPU by torchrun, if ``gpu`` ("0,1") names several.

    Returns True when they were started and have ended. False inside such a process, also one that
    the user started with torchrun. ``after_ctrl_c`` is the script's status after Ctrl-C.
    """
    indices = gpu_indices(gpu)
    if len(indices) < 2 or "LOCAL_RANK" in os.environ:
        return False
    try:
        torchrun(["--standalone", f"--nproc-per-node={len(indices)}", *sys.argv])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        # The process has said why; the launcher's own traceback would not help the user.
        sys.exit(f"error: training process {rank} ended with exit status {failure.exitcode}")
    except SignalException as error:  # the processes have stopped as they do alone
        sys.exit(after_ctrl_c if error.sigval == signal.SIGINT else 128 + error.sigval)
    return True


def gpu_indices(gpu: str) -> list[int]:
    """The GPUs that the setting names and this machine has; ``[]`` means the CPU.

    Raises:
        SettingsError: some of the GPUs do not exist.
    """
    indices = [int(part) for part in gpu.split(",") if part.strip()]
    if not indices or not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    if max(indices) >= count:
        raise SettingsError(
            f'GPU is "{gpu}", but this machine has {count} GPU(s), 0 to {count - 1}; '
            "change GPU in config.py"
        )
    return indices


def start_process(gpu: str, timeout: timedelta = timedelta(minutes=30)) -> Process:
    """Join the other processes, if there are any, and choose this one's device.

    ``timeout`` is how long a process may wait for another one. The default is long enough for the
    main process to check a large data set.

    Raises:
        SettingsError: there are too few GPUs for the processes, or the environment does not
            describe the processes.
    """
    indices = gpu_indices(gpu)
    try:
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
    except ValueError as error:
        raise SettingsError(f"LOCAL_RANK: {error}; unset it to train in one process") from error
    if indices and local_rank >= len(indices):
        raise SettingsError(
            f'GPU is "{gpu}", but {local_rank + 1} or more processes were started on this machine; '
            'name as many GPUs as there are processes, such as GPU = "0,1" for two'
        )
    device = torch.device("cuda", indices[local_rank]) if indices else torch.device("cpu")
    if gpu and not indices and os.environ.get("RANK", "0") == "0":
        print(f'GPU is "{gpu}", but torch sees no GPU on this machine: using the CPU.')
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # Inputs of a run or a clip have few sizes: cuDNN tries its algorithms once for each.
        torch.backends.cudnn.benchmark = True
    else:
        _keep_freed_memory()
    if "RANK" not in os.environ:
        return Process(device)
    try:
        _join_group("nccl" if device.type == "cuda" else "gloo", timeout)
    except (ValueError, KeyError) as error:
        raise SettingsError(
            f"the environment has RANK, but does not describe several processes: {error}. torchrun "
            "sets all variables; unset RANK and LOCAL_RANK to train in one process"
        ) from error
    return Process(device, torch.distributed.get_rank(), torch.distributed.get_world_size())


def _keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of returning them to Linux.

    On the CPU every feature map is such a block; new pages for it take a quarter of the time.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large block
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: keep free memory


def _join_group(backend: str, timeout: timedelta) -> None:
    """Join the other processes that torchrun has started."""
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        torch.distributed.init_process_group(backend, timeout=timeout)
        return
    # After a restart, torchrun's store still has the addresses of the processes that died, at least
    # in torch 2.15, so the new ones need other names in it. On several machines the counts may
    # differ; there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives them a new store.
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    torch.distributed.init_process_group(
        backend,
        store=torch.distributed.PrefixStore(f"restart_{restarts}", store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )


def num_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gather(value: Any, process: Process) -> list[Any]:
    """The values of all processes, by rank; anything that can be pickled."""
    if process.world_size == 1:
        return [value]
    values = [None] * process.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def wait_for_all(process: Process) -> None:
    """Wait until every process has called this function."""
    if process.world_size > 1:
        torch.distributed.barrier()


def end_process() -> None:
    """Leave the group of processes, if there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
