"""Checks that the rules and the dashboard use only metrics that the program exports."""

import json, os, re

METRIC = re.compile(r"\bpodswitch_[a-z0-9_]+")


def exported(program):
    """Names in the program's sources."""
    names = set()
    for folder, _, files in os.walk(program):
        for file in files:
            if file.endswith(".rs"):
                names |= set(re.findall(r'"(podswitch_[a-z0-9_]+)"', open(os.path.join(folder, file)).read()))
    return names


def unknown(expression, known):
    """Names in an expression that no metric has. Series of histograms have a suffix."""
    base = lambda name: re.sub(r"_(bucket|sum|count)$", "", name)
    return sorted(name for name in set(METRIC.findall(expression)) if name not in known and base(name) not in known)


def run(chart, program, objects, check):
    known = exported(program)
    rules = next(o for o in objects if o["kind"] == "PrometheusRule")["spec"]["groups"]
    for rule in [r for group in rules for r in group["rules"]]:
        missing = unknown(rule["expr"], known)
        check(f"monitoring: {rule['alert']}", f"no such metric: {missing}" if missing else None)
        check(f"monitoring: {rule['alert']} says what to do", None if {"summary", "description"} <= set(rule["annotations"]) else "it does not")
    board = json.loads(next(o for o in objects if o["kind"] == "ConfigMap")["data"]["podswitch.json"])
    for panel in board["panels"]:
        for target in panel["targets"]:
            missing = unknown(target["expr"], known)
            check(f"monitoring: panel {panel['title']}", f"no such metric: {missing}" if missing else None)
