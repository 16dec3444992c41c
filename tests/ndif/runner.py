"""A runner of the sandbox, whose half precision is that of a GPU. Runs in the server's Python."""

import runpy

import pretended_gpu  # noqa: F401 - importing it changes what the runner runs requests in

runpy.run_module("ndif.services.ray.sandbox.runner", run_name="__main__")
