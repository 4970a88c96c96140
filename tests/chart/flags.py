"""Checks that containers get only flags that the program has."""

import glob
import os
import re

FIELD = re.compile(r"^\s+(?:pub(?:\([a-z]+\))? )?([a-z][a-z0-9_]*): ", re.M)
LONG = re.compile(r'long = "([a-z0-9-]+)"')
# Sources of each command.
SOURCES = {
    "run": ["run/*.rs", "run/*/*.rs", "cluster.rs"],
    "hold": ["hold.rs"],
    "preflight": ["preflight.rs"],
    "probe": ["probe.rs"],
    "uninstall": ["uninstall.rs"],
}


def known(program, command):
    text = "".join(open(path).read() for pattern in SOURCES[command] for path in glob.glob(os.path.join(program, pattern)))
    return {name.replace("_", "-") for name in FIELD.findall(text)} | set(LONG.findall(text)) | {"json"}


def run(program, everything, check):
    for name, objects in everything.items():
        for object in objects:
            spec = object.get("spec", {})
            pod = spec.get("template", {}).get("spec", spec if object["kind"] == "Pod" else {})
            for container in pod.get("containers", []) + pod.get("initContainers", []):
                command, *arguments = container["args"]
                flags = {a[2:].split("=")[0] for a in arguments if a.startswith("--")}
                unknown = sorted(flags - known(program, command))
                check(f"flags: {name}: {command}", f"vswitch {command} has no {unknown}" if unknown else None)
