"""What NDIF's servers run a model in, on a machine without a GPU. Runs in the server's Python.

One key's requests run in the sandbox and all others in the model's own process, as on a server that
knows its users. With STAGES_GPU_BYTES in the environment, a request may take that much memory.
"""

import contextlib
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pretended_gpu
import ray
import torch
from ndif.services.ray.deployments.modeling import base
from ndif.services.ray.deployments.modeling.base import HuggingFaceModel
from ndif.services.ray.sandbox import driver, host, protocol
from ndif.services.ray.sandbox.model import SandboxModelDeployment

torch.cuda.synchronize = lambda *_args, **_kwargs: None
# A runner is started with few variables, and would ask the real hub.
host.RUNNER_ENV += ("HF_ENDPOINT", "PYTHONPATH")
# It imported the function by its name.
driver.request_dtype = pretended_gpu.autocast


def _start_runner(command, **options):
    """Start our runner in the place of NDIF's, `python -m MODULE …`."""
    return subprocess.Popen([*command[:2], "runner", *command[3:]], **options)


host.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": _start_runner})


crossed = {"messages": 0, "bytes": 0}
"""What went through the socket of a sandbox."""


def _counting(function):
    def call(sock, *arguments):
        result = function(sock, *arguments)
        crossed["messages"] += 1
        crossed["bytes"] += len(result if arguments == () else arguments[0])
        return result

    return call


protocol.send_frame = _counting(protocol.send_frame)
protocol.recv_frame = _counting(protocol.recv_frame)

ROOM = int(os.environ.get("STAGES_GPU_BYTES", 0))
used = SimpleNamespace(most=0)
"""The memory of the latest request, where it has a limit."""


def _baselines(assigned):
    used.most = 0
    # All that the model was assigned but for the room is taken by its weights.
    return {card: held - ROOM for card, held in assigned.items()} if ROOM else {}


def _peaks(baselines):
    return {card: (before, before + used.most) for card, before in baselines.items()}


base.gpu_baselines, base.gpu_peaks = _baselines, _peaks


class _Deployment(SandboxModelDeployment):
    def load_from_disk(self):
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **self.kwargs
        )
        model._module.requires_grad_(False)
        return model

    def _trust(self, request):
        request.trusted = request.api_key != os.environ["STAGES_SANDBOXED_KEY"]

    def execution_scope(self, request):
        self._trust(request)
        return super().execution_scope(request)

    def execute(self, request):
        self._trust(request)
        crossed.update(messages=0, bytes=0)
        memory = pretended_gpu.Memory(ROOM) if ROOM else contextlib.nullcontext(used)
        try:
            with memory:
                return super().execute(request)
        finally:
            if ROOM:
                used.most = memory.most
            with Path(os.environ["STAGES_CROSSED"]).open("a") as log:
                log.write(f"{crossed['messages']} {crossed['bytes']}\n")


@ray.remote(num_cpus=0.1, max_restarts=-1)
class CPUModelActor(_Deployment):
    """Both kinds of request, on the CPU."""
