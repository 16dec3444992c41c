"""The guard, which torch asks for the current device: a few lines of C++, built once a machine.

Torch without CUDA has no guard for it, and no tensor can be on a device without one. It counts no
devices: for each that it counted, a backward pass would start a thread, after which a process
cannot be forked.
"""

import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

SOURCE = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl {
template <DeviceType D>
struct Pretended : NoOpDeviceGuardImpl<D> {
  DeviceIndex deviceCount() const noexcept override { return 0; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Pretended<DeviceType::CUDA>)
C10_REGISTER_GUARD_IMPL(MPS, Pretended<DeviceType::MPS>)
}
"""


NO_COMPILER = "there is no C++ compiler, for the guard of a pretended device: set CXX"


def obstacle() -> str:
    """Return why no device can be pretended here, or an empty text.

    Where the variable CI of the environment is set, a compiler is expected.
    """
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return "this machine has a real one, whose guard would be replaced"
    return "" if _compiler() or os.environ.get("CI") else NO_COMPILER


@functools.cache
def install() -> None:
    """Give torch the guard, for the rest of the process."""
    torch.ops.load_library(str(_built()))
    # Torch's compiler would put its own guard in the place of one that counts no devices, and that
    # one counts 255.
    torch._C._ensureCUDADeviceGuardSet = lambda: None


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++"))


def _built() -> Path:
    """Return the library, which the first process that wants it builds."""
    content = f"{SOURCE}{torch.__version__}{torch.__file__}{platform.machine()}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = home / "stages-of-inference-tests"
    cache.mkdir(parents=True, exist_ok=True)
    library = cache / f"guard-{hashlib.sha256(content.encode()).hexdigest()[:16]}.so"
    # Workers of pytest-xdist start together.
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(library)
    return library


def _compile(library: Path) -> None:
    torch_home = Path(torch.__file__).parent
    unfinished = library.with_suffix(".unfinished")
    assert _compiler(), NO_COMPILER
    command = [_compiler(), "-std=c++20", "-O0", "-shared", "-fPIC", "-x", "c++", "-"]
    command += ["-I", torch_home / "include", "-L", torch_home / "lib", "-lc10", "-o", unfinished]
    done = subprocess.run(command, input=SOURCE, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    unfinished.replace(library)
