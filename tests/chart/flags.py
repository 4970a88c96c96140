"""Checks that containers get only flags that the program has."""

import glob
import os
import re

FIELD = re.compile(r"^\s+(?:pub(?:\([a-z]+\))? )?([a-z][a-z0-9_]*): ", re.M)
LONG = re.compile(r'long = "([a-z0-9-]+)"')
# Sources of each command.
SOURCES = {
    "vswitch run": ["vswitch/run/*.rs", "vswitch/run/*/*.rs", "vswitch/cluster.rs"],
    "vswitch hold": ["vswitch/hold.rs"],
    "vswitch preflight": ["vswitch/preflight.rs"],
    "vswitch probe": ["vswitch/probe.rs"],
    "vswitch uninstall": ["vswitch/uninstall.rs"],
    "ingress": ["ingress/src/flags.rs"],
}


def known(examples, command):
    text = "".join(open(path).read() for pattern in SOURCES[command] for path in glob.glob(os.path.join(examples, pattern)))
    return {name.replace("_", "-") for name in FIELD.findall(text)} | set(LONG.findall(text)) | {"json"}


def run(examples, everything, check):
    for name, objects in everything.items():
        for object in objects:
            spec = object.get("spec", {})
            pod = spec.get("template", {}).get("spec", spec if object["kind"] == "Pod" else {})
            for container in pod.get("containers", []) + pod.get("initContainers", []):
                command, arguments = container["command"][0].lstrip("/"), container["args"]
                if command == "vswitch":
                    command, arguments = f"vswitch {arguments[0]}", arguments[1:]
                flags = {a[2:].split("=")[0] for a in arguments if a.startswith("--")}
                unknown = sorted(flags - known(examples, command))
                check(f"flags: {name}: {command}", f"{command} has no {unknown}" if unknown else None)
