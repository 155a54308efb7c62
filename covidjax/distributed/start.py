"""The start and the end of several processes that train one network; JAX finds out whether there are several."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

import jax
from jax._src.distributed import global_state  # JAX gives its key-value store no public name

from covidjax.console import say
from covidjax.distributed.processes import LOST, Processes
from covidjax.errors import Interrupted, UserError

# What `launch/local.py`, or whoever starts processes by hand, says beside JAX_COORDINATOR_ADDRESS.
COUNT, RANK = "COVIDJAX_PROCESSES", "COVIDJAX_PROCESS"
# JAX sees a Slurm step by these together; a shell inside an allocation has the first alone.
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
SHUTDOWN_SECONDS = 60
PATIENCE_SECONDS = 10.0  # until it shows whether another process is why an exchange failed


@contextlib.contextmanager
def joined(start_seconds: int, heartbeat_seconds: int, watchdog_seconds: int) -> Iterator[Processes]:
    """Within it this process is one of those that were started together, or the only one.

    Under Slurm, Kubernetes, Open MPI and on Cloud TPU, JAX finds the others by itself. Standard output is that of
    process 0 alone. What ends one of several ends all: the others say which one it was, and end with status `LOST`.
    start_seconds: until all have to be there; heartbeat_seconds, watchdog_seconds: see `Processes.watch`.
    Raises UserError where the others are not there in time.
    """
    if not _start(start_seconds, heartbeat_seconds):
        yield Processes()
        return
    processes = Processes(global_state.client, global_state.process_id, global_state.num_processes)
    processes.watch(watchdog_seconds)
    with contextlib.ExitStack() as stack:
        if not processes.writes:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            yield processes
        except Interrupted as stopped:  # by all at the same step
            processes.barrier("stopped")
            _end(128 + stopped.number, f"{stopped}\n")
        except BaseException as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and processes.name_lost(PATIENCE_SECONDS):
                _end(LOST, "")
            processes.tell_failure(_in_words(error))
            if isinstance(error, UserError):
                _end(2, f"error: {' '.join(str(error).split())}\n")
            _end(1, "".join(traceback.format_exception(error)))
        processes.barrier("finished")
        processes.rest()
    jax.distributed.shutdown()


def _start(start_seconds: int, heartbeat_seconds: int) -> bool:
    """Whether there are other processes, or might have been; they have then found each other."""
    told = COUNT in os.environ
    present = [name for name in SLURM if name in os.environ]
    if not told and present and len(present) < len(SLURM) and os.environ.get("SLURM_NTASKS", "1") != "1":
        missing = ", ".join(name for name in SLURM if name not in os.environ)
        say(f"inside Slurm job {os.environ.get(SLURM[0])}, but no step of it ({missing} not set): this process works")
        say("alone; put `srun` before the command to have all tasks of the job work together")
    try:
        jax.distributed.initialize(
            initialization_timeout=start_seconds,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            num_processes=int(os.environ[COUNT]) if told else None,
            process_id=int(os.environ[RANK]) if told else None,
        )
    except ValueError as error:
        if "coordinator_address" not in str(error):
            raise
        return False
    except RuntimeError as error:
        if "must be called before" in str(error) and not told:  # a notebook or a test, which has used JAX before
            return False
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the processes did not find each other within {start_seconds} seconds ({reason}): look whether all of "
            "them started and reach the first one, or raise config.processes.start_seconds"
        ) from error
    return True


def _in_words(error: BaseException) -> str:
    return " ".join(f"{'' if isinstance(error, UserError) else type(error).__name__ + ': '}{error}".split())[:500]


def _end(status: int, text: str) -> NoReturn:
    """Ends this process at once: JAX would wait at its end for processes that no longer come."""
    sys.stdout.flush()
    sys.stderr.write(text)
    sys.stderr.flush()
    os._exit(status)
