"""The admission policy's expressions, evaluated on sample requests by a CEL interpreter."""

import copy

import celpy

NODE = "authentication.kubernetes.io/node-name"
AGENT = "system:serviceaccount:kube-system:podswitch"

NODE_OBJECT = {
    "apiVersion": "v1", "kind": "Node",
    "metadata": {"name": "n1", "labels": {"zone": "a"}, "annotations": {"other": "x", "podswitch.io/vtep-mac": "0e:58:00:00:00:01"}},
    "spec": {"podCIDR": "10.1.0.0/24"},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}], "capacity": {"cpu": "2"}, "conditions": [{"type": "Ready", "status": "True"}]},
}
POD_OBJECT = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "d", "labels": {"app": "p"}}, "spec": {"nodeName": "n1"}, "status": {}}


def change(object, path, value):
    """A copy with one field set, or removed if `value` is None."""
    object = copy.deepcopy(object)
    *folders, last = path
    at = object
    for folder in folders:
        at = at.setdefault(folder, {}) if isinstance(at, dict) else at[folder]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return object


ANNOTATIONS = ["metadata", "annotations"]
# name, object before, after, subresource, who, node of the token, allowed
CASES = [
    ("own node, own key", NODE_OBJECT, [*ANNOTATIONS, "podswitch.io/vtep-mac"], "02:00:00:00:00:01", "", "n1", True),
    ("own node, new key of ours", NODE_OBJECT, [*ANNOTATIONS, "podswitch.io/public-address"], "192.0.2.9", "", "n1", True),
    ("own node, Flannel's key", NODE_OBJECT, [*ANNOTATIONS, "flannel.alpha.coreos.com/backend-data"], "{}", "", "n1", True),
    ("own node, own key removed", NODE_OBJECT, [*ANNOTATIONS, "podswitch.io/vtep-mac"], None, "", "n1", True),
    ("other node", NODE_OBJECT, [*ANNOTATIONS, "podswitch.io/vtep-mac"], "02:00:00:00:00:01", "", "n2", False),
    ("token without node", NODE_OBJECT, [*ANNOTATIONS, "podswitch.io/vtep-mac"], "02:00:00:00:00:01", "", None, False),
    ("own node, key of others", NODE_OBJECT, [*ANNOTATIONS, "other"], "y", "", "n1", False),
    ("own node, key of others removed", NODE_OBJECT, [*ANNOTATIONS, "other"], None, "", "n1", False),
    ("own node, key that looks like ours", NODE_OBJECT, [*ANNOTATIONS, "podswitch.io/netns"], "/x", "", "n1", False),
    ("own node, label", NODE_OBJECT, ["metadata", "labels", "zone"], "b", "", "n1", False),
    ("own node, finalizer", NODE_OBJECT, ["metadata", "finalizers"], ["a/b"], "", "n1", False),
    ("own node, podCIDR", NODE_OBJECT, ["spec", "podCIDR"], "10.2.0.0/24", "", "n1", False),
    ("own node, unschedulable", NODE_OBJECT, ["spec", "unschedulable"], True, "", "n1", False),
    ("own status, condition", NODE_OBJECT, ["status", "conditions"], NODE_OBJECT["status"]["conditions"] + [{"type": "NetworkUnavailable", "status": "False"}], "status", "n1", True),
    ("own status, other condition", NODE_OBJECT, ["status", "conditions"], [{"type": "Ready", "status": "False"}], "status", "n1", False),
    ("own status, address", NODE_OBJECT, ["status", "addresses"], [{"type": "InternalIP", "address": "192.0.2.66"}], "status", "n1", False),
    ("own status, capacity", NODE_OBJECT, ["status", "capacity", "cpu"], "64", "status", "n1", False),
    ("other status, condition", NODE_OBJECT, ["status", "conditions"], NODE_OBJECT["status"]["conditions"] + [{"type": "NetworkUnavailable", "status": "True"}], "status", "n2", False),
    ("own pod, addresses", POD_OBJECT, [*ANNOTATIONS, "podswitch.io/addresses"], "10.1.0.2", "", "n1", True),
    ("pod of another node", POD_OBJECT, [*ANNOTATIONS, "podswitch.io/addresses"], "10.1.0.2", "", "n2", False),
    ("own pod, netns", POD_OBJECT, [*ANNOTATIONS, "podswitch.io/netns"], "/run/netns/x", "", "n1", False),
    ("own pod, label", POD_OBJECT, ["metadata", "labels", "app"], "db", "", "n1", False),
    ("own pod, image", POD_OBJECT, ["spec", "containers"], [{"name": "c", "image": "x"}], "", "n1", False),
    ("own pod, status", POD_OBJECT, ["status", "phase"], "Failed", "status", "n1", False),
    ("own pod, not bound", change(POD_OBJECT, ["spec", "nodeName"], None), [*ANNOTATIONS, "podswitch.io/addresses"], "10.1.0.2", "", "n1", False),
    ("own pod, ephemeral containers", POD_OBJECT, [*ANNOTATIONS, "podswitch.io/addresses"], "10.1.0.2", "ephemeralcontainers", "n1", False),
    ("own node, nothing changed", NODE_OBJECT, ["metadata", "labels", "zone"], "a", "", "n1", True),
]


class Policy:
    def __init__(self, spec):
        environment = celpy.Environment()
        self.compile = lambda text: environment.program(environment.compile(text))
        self.conditions = [self.compile(c["expression"]) for c in spec["matchConditions"]]
        self.variables = [(v["name"], self.compile(v["expression"])) for v in spec["variables"]]
        self.validations = [(self.compile(v["expression"]), v) for v in spec["validations"]]
        self.messages = [self.compile(v["messageExpression"]) for v in spec["validations"] if "messageExpression" in v]

    def applies(self, context):
        return all(bool(c.evaluate(context)) for c in self.conditions)

    def allows(self, context):
        variables = {}
        for name, program in self.variables:
            variables[name] = program.evaluate({**context, "variables": celpy.json_to_cel({})} | {"variables": to_cel(variables)})
        context = {**context, "variables": to_cel(variables)}
        # An expression that fails denies: failurePolicy is Fail.
        for program, validation in self.validations:
            try:
                if not bool(program.evaluate(context)):
                    return False, validation["expression"]
            except celpy.CELEvalError as error:
                return False, f"{validation['expression']}: {error}"
        return True, None


def to_cel(variables):
    return celpy.celtypes.MapType({celpy.celtypes.StringType(k): v for k, v in variables.items()})


def request(object, subresource, user, node, operation="UPDATE"):
    extra = {NODE: [node]} if node else {}
    return {"operation": operation, "subResource": subresource, "resource": {"group": "", "version": "v1", "resource": "nodes" if object["kind"] == "Node" else "pods"}, "userInfo": {"username": user, "extra": extra}}


def run(objects, check):
    spec = next(o for o in objects if o["kind"] == "ValidatingAdmissionPolicy")["spec"]
    binding = next(o for o in objects if o["kind"] == "ValidatingAdmissionPolicyBinding")["spec"]
    check("admission: a failing expression denies", None if spec["failurePolicy"] == "Fail" and binding["validationActions"] == ["Deny"] else "it does not")
    policy = Policy(spec)
    for name, before, path, value, subresource, node, allowed in CASES:
        after = change(before, path, value)
        context = {"object": celpy.json_to_cel(after), "oldObject": celpy.json_to_cel(before), "request": celpy.json_to_cel(request(before, subresource, AGENT, node))}
        if not policy.applies(context):
            check(f"admission: {name}", "the policy does not apply")
            continue
        got, why = policy.allows(context)
        check(f"admission: {name}", None if got == allowed else f"{'allowed' if got else 'denied by ' + why}")
    context = {"object": celpy.json_to_cel(NODE_OBJECT), "oldObject": celpy.json_to_cel(NODE_OBJECT), "request": celpy.json_to_cel(request(NODE_OBJECT, "", "system:node:n1", None))}
    check("admission: others are not concerned", None if not policy.applies(context) else "it applies to the kubelet")
