"""A real NDIF server on loopback: its environment, its processes, and their end.

`python tests/ndif/server.py MODEL_DIRECTORY …` starts one, says how to reach it, and takes it down
on Ctrl-C. Everything lies in `.ndif` of the project's root; redis-server is taken from the PATH or
unpacked there from Debian's packages, nothing is installed system-wide.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1] / ".ndif"
PACKAGES = (
    "torch==2.13.0",
    "transformers==5.22.2",
    "nnsight==0.8.0",
    "ndif[api,ray]==0.1.2",
    "moto[server,s3]==5.2.5",
)
"""nnsight 0.8.1 does not run under ndif 0.1.2."""

DEBIAN = ("redis-server", "redis-tools", "libatomic1", "libhiredis0.14", "libjemalloc2",
          "liblua5.1-0", "liblzf1", "lua-bitop", "lua-cjson", "libsystemd0", "libssl3")  # fmt: skip

TRUSTED = "11111111-1111-4111-8111-111111111111"
SANDBOXED = "22222222-2222-4222-8222-222222222222"


class Missing(Exception):
    """What the server needs and this machine does not have."""


def prepare() -> tuple[Path, Path, str]:
    """Set up what is not there yet: the server's Python, redis-server and where its libraries are.

    Raises
    ------
    Missing
        If it cannot be had on this machine; the text says what and how to get it.
    """
    python = ROOT / "env" / "bin" / "python"
    ready = ROOT / "env" / "ready"
    if not ready.exists() or ready.read_text() != "\n".join(PACKAGES):
        base = _python()
        print(f"setting up {python.parents[1]}: minutes, 6 GB", file=sys.stderr)
        shutil.rmtree(python.parents[1], ignore_errors=True)
        subprocess.run([base, "-m", "venv", python.parents[1]], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if subprocess.run([*pip, *PACKAGES]).returncode:
            shutil.rmtree(python.parents[1], ignore_errors=True)
            raise Missing(f"pip cannot install {', '.join(PACKAGES)}")
        ready.write_text("\n".join(PACKAGES))
    return python, *_redis()


def _python() -> str:
    known = sorted(Path("~/.pyenv/versions").expanduser().glob("3.1[23].*/bin/python"))
    for name in (os.environ.get("NDIF_PYTHON"), "python3.12", "python3.13", *map(str, known)):
        if name and shutil.which(name):
            asked = [name, "-c", "import sys; print(sys.version_info[:2] in ((3, 12), (3, 13)))"]
            if subprocess.run(asked, capture_output=True, text=True).stdout.strip() == "True":
                return name
    raise Missing("NDIF's server takes Python 3.12 or 3.13: install it, or name it in NDIF_PYTHON")


def _redis() -> tuple[Path, str]:
    found = shutil.which("redis-server")
    if found:
        return Path(found), ""
    place = ROOT / "redis"
    program = place / "usr" / "bin" / "redis-server"
    if not program.exists():
        if not shutil.which("apt-get") or not shutil.which("dpkg"):
            raise Missing("there is no redis-server on the PATH: install it")
        place.mkdir(parents=True, exist_ok=True)
        for package in DEBIAN:
            if subprocess.run(["apt-get", "download", "-qq", package], cwd=place).returncode:
                raise Missing(f"Debian's package {package} cannot be had: install redis-server")
        for package in place.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, place], check=True)
    return program, str(next((place / "usr" / "lib").glob("*-linux-gnu")))


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """A running server, and the hub from which it and its clients load models.

    Parameters
    ----------
    models : dict of str to path
        The hub's models, by name.
    dtype : str
        What the server loads weights as. Half precision is computed as on a GPU, in autocast.
    environment : str
        Variables of the server, such as NDIF_DEFAULT_EXECUTION_TIMEOUT_SECONDS, the seconds of a
        request, and STAGES_GPU_BYTES, the memory that a request may take besides the weights.
    """

    def __init__(self, models: dict[str, Path], dtype: str = "float32", **environment: str) -> None:
        self.python, self._redis, libraries = prepare()
        self.models = models
        self.place = ROOT / "runs" / uuid.uuid4().hex[:12]
        self.place.mkdir(parents=True)
        # Ray's directory: a name's length is limited where the path of a socket is.
        self._short = Path("/tmp") / f"ndif-{self.place.name}"
        self._sessions: dict[int, str] = {}
        self._begun: list[subprocess.Popen[bytes]] = []
        names = ("api", "redis", "gcs", "client", "store", "hub")
        self.ports = {name: free_port() for name in names}
        self.environment = {
            **{k: os.environ[k] for k in ("PATH", "HOME", "LANG", "TMPDIR") if k in os.environ},
            "STAGES_SANDBOXED_KEY": SANDBOXED,
            "STAGES_CROSSED": str(self.place / "crossed"),
            "LD_LIBRARY_PATH": libraries,
            "PYTHONPATH": str(HERE),
            "OMP_NUM_THREADS": "1",
            "HF_HOME": str(self.place / "hub"),
            "HF_ENDPOINT": f"http://127.0.0.1:{self.ports['hub']}",
            "HF_HUB_DISABLE_XET": "1",
            "AWS_ACCESS_KEY_ID": "loopback",
            "AWS_SECRET_ACCESS_KEY": "loopback",
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            # Without it Ray listens on the machine's address, whatever it is asked for.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "NDIF_REDIS_URL": f"redis://127.0.0.1:{self.ports['redis']}",
            "NDIF_RAY_ADDRESS": f"ray://127.0.0.1:{self.ports['client']}",
            "NDIF_OBJECT_STORE_URL": f"http://127.0.0.1:{self.ports['store']}",
            "NDIF_API_PORT": str(self.ports["api"]),
            "NDIF_MODEL_IMPORT_PATH": "actor.CPUModelActor",
            "NDIF_DEFAULT_DTYPE": dtype,
            "NDIF_DEFAULT_PADDING_BIAS": "1000000",
            "NDIF_MINIMUM_DEPLOYMENT_TIME_SECONDS": "0",
            "NDIF_SANDBOX_POOL_SIZE": "1",
            "NDIF_STATUS_TTL_S": "1",
            **environment,
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['api']}"

    @property
    def hub(self) -> str:
        return self.environment["HF_ENDPOINT"]

    def client(self, key: str | None = TRUSTED) -> dict[str, str]:
        """Return the environment of a client."""
        ours = ("NDIF_", "HF_", "NNSIGHT_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        found = {
            **kept,
            "HF_ENDPOINT": self.hub,
            "HF_HOME": str(self.place / "client"),
            "HF_HUB_DISABLE_XET": "1",
            "NDIF_HOST": self.url,
            "NNSIGHT_CONFIG": str(self.place / "none.yaml"),
        }
        return found if key is None else {**found, "NDIF_API_KEY": key}

    def start(self, hub: bool = True) -> None:
        """Start all processes and wait until the server is connected to its compute."""
        binaries = self.python.parent
        ports = self.ports
        if hub:
            served = [f"{name}={path}" for name, path in self.models.items()]
            self._spawn("hub", sys.executable, HERE.parent / "hub.py", ports["hub"], *served)
        self._spawn("redis", self._redis, "--port", ports["redis"], "--bind", "127.0.0.1",
                    "--save", "")  # fmt: skip
        self._spawn("store", binaries / "moto_server", "-H", "127.0.0.1", "-p", ports["store"])
        resources = '{"head": 10, "cuda_memory_bytes": 8000000000, "cpu_memory_bytes": 8000000000}'
        self._spawn(
            "ray", binaries / "ray", "start", "--head", "--block", "--num-cpus=4", "--num-gpus=1",
            f"--resources={resources}", "--node-ip-address=127.0.0.1", f"--port={ports['gcs']}",
            f"--ray-client-server-port={ports['client']}", "--include-dashboard=true",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={free_port()}",
            f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={self._short}",
            "--object-store-memory=200000000", "--disable-usage-stats",
        )  # fmt: skip
        self._wait_for(ports["gcs"])
        self._wait_for(ports["client"])
        self._spawn("controller", self.python, "-m",
                    "ndif.services.ray.deployments.controller.controller",
                    RAY_ADDRESS=f"127.0.0.1:{ports['gcs']}")  # fmt: skip
        self._spawn("api", binaries / "gunicorn", "--config",
                    "python:ndif.services.api.gunicorn_conf", "--bind",
                    f"127.0.0.1:{ports['api']}", "ndif.services.api.app:app")  # fmt: skip
        deadline = time.monotonic() + 120
        while not self._connected():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server did not come up; its logs are in {self.place}")
            time.sleep(0.5)

    def deploy(self, name: str) -> None:
        """Have the server load a model, and wait until it runs."""
        command = [self.python.parent / "ndif", "deploy", name, "--task", "text-generation"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"ndif deploy {name}: {done.stdout[-500:]} {done.stderr[-500:]}")

    def stop(self, hub: bool = True) -> None:
        """End every process that was started, and no other."""
        for signalled in (signal.SIGTERM, signal.SIGKILL):
            self._signal(signalled, hub)
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and any(self.processes(hub)):
                self._reap()
                time.sleep(0.1)
        self._bury(hub)
        shutil.rmtree(self._short, ignore_errors=True)
        if hub:
            shutil.rmtree(self.place, ignore_errors=True)

    def kill(self) -> None:
        """End the server at once, as when its machine loses power; the hub stays."""
        while any(self.processes(hub=False)):
            self._signal(signal.SIGKILL, hub=False)
            self._reap()
        self._bury(hub=False)
        shutil.rmtree(self._short, ignore_errors=True)

    def processes(self, hub: bool = True) -> Iterator[int]:
        """Yield the processes of this server: those of the sessions that it has begun."""
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                name = self._sessions.get(os.getsid(int(place.name)))
                if name and (hub or name != "hub") and (place / "cmdline").read_bytes():
                    yield int(place.name)

    def _signal(self, number: int, hub: bool) -> None:
        for pid in list(self.processes(hub)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _bury(self, hub: bool) -> None:
        for process in self._begun:
            if hub or self._sessions[process.pid] != "hub":
                process.wait(10)
        self._reap()

    def _reap(self) -> None:
        """Take note of the processes that have ended."""
        self._begun = [process for process in self._begun if process.poll() is None]

    def _connected(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/connected", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _spawn(self, name: str, *command: object, **more: str) -> None:
        with (self.place / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                env=self.environment | more,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.place,
                start_new_session=True,
            )
        self._begun.append(process)
        self._sessions[process.pid] = name

    def _wait_for(self, port: int) -> None:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing listens on {port}; the logs are in {self.place}")
            time.sleep(0.2)


def main() -> None:
    """Run a server of the model directories that are given until Ctrl-C."""
    models = {f"stages/{Path(each).name}": Path(each).resolve() for each in sys.argv[1:]}
    server = Server(models)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        server.start()
        for name in models:
            server.deploy(name)
        print(f"export NDIF_HOST={server.url} HF_ENDPOINT={server.hub} HF_HUB_DISABLE_XET=1")
        print(f"export NDIF_API_KEY={TRUSTED}  # in the sandbox: {SANDBOXED}")
        print(f"models: {', '.join(models)}", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        server.stop()


if __name__ == "__main__":
    main()
